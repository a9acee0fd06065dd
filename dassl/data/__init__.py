from .data_manager import DataManager, DatasetWrapper, Loader, NoData, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "Loader", "NoData", "build_data_loader"]
