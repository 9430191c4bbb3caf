"""What is drawn at a step, if nothing but the seed and the step may decide it? A generator for each."""

import torch


def generator(seed: int, *stream: int) -> torch.Generator:
    """A generator that depends on the seed and on the numbers after it alone, so that batch `n` is always batch `n`."""
    # The numbers must reach the lower 32 bits: the generators of CPUs look at no others.
    mixed = seed
    for number in stream:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)
