from .data_manager import DataManager, DatasetWrapper, Loader, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "Loader", "build_data_loader"]
