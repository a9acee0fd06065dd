from .data_manager import DataManager, DatasetWrapper, Loader, NoData, build_data_loader, in_turns

__all__ = ["DataManager", "DatasetWrapper", "Loader", "NoData", "build_data_loader", "in_turns"]
