"""Pretrained models: one file a family, which says where each tensor of theirs goes in our networks."""
