"""Stable Diffusion XL: two text encoders, a pooled output, and the UNet told of sizes and crops."""
