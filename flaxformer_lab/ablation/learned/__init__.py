"""Cuts parts of a pretrained model, and judges what is left by what the model is for."""
