import torch

cpu = torch.device("cpu")
dtype_vae = torch.float32
collections = []


def torch_gc():
    collections.append("gc")
