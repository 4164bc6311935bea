"""Which flows fit SDXL's latents."""
