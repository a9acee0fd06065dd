"""The references themselves, against open_clip and each other, and ours against them."""
