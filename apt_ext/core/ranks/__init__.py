"""One job on several GPUs or processes: who makes which of a network's calls, and how all of them stop together."""
