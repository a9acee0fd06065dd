from .transforms import INTERPOLATION_MODES, build_transform, preprocessing_of

__all__ = ["INTERPOLATION_MODES", "build_transform", "preprocessing_of"]
