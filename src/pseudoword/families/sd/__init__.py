"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, an image VAE; epsilon or v-prediction."""
