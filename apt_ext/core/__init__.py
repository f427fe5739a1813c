"""The method: tensors in, tensors out. Needs torch and einops, knows no host, reads and writes nothing."""
