from torch.optim import RAdam

__all__ = ["RAdam"]
