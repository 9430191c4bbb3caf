"""What does a large matrix look like that is known only as a product of two thin ones?

A head's map from token to token is a matrix over the vocabulary squared, of rank at most `d_head`. Everything asked of
it here is answered from the two factors; the matrix itself exists at most as one block of rows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The matrix `left @ right`, or a stack of them along leading axes."""

    left: Float[Tensor, "*stack row rank"]
    right: Float[Tensor, "*stack rank column"]

    def __getitem__(self, index: int) -> "LowRank":
        return LowRank(self.left[index], self.right[index])

    @property
    def transpose(self) -> "LowRank":
        return LowRank(self.right.mT, self.left.mT)

    def __matmul__(self, other: "LowRank") -> "LowRank":
        """The product of two, still in factors; rows go through `self` first."""
        return LowRank(self.left, (self.right @ other.left) @ other.right)

    def dense(self) -> Float[Tensor, "*stack row column"]:
        """The matrix itself. For small ones."""
        return self.left @ self.right

    def norm(self) -> Float[Tensor, "*stack"]:
        """Frobenius norm."""
        return (_triangle(self.left) @ _triangle(self.right.mT).mT).norm(dim=(-2, -1))

    def singular_values(self) -> Float[Tensor, "*stack rank"]:
        """Largest first."""
        return torch.linalg.svdvals(_triangle(self.left) @ _triangle(self.right.mT).mT)

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*stack row rank"], Float[Tensor, "*stack rank"], Float[Tensor, "*stack rank column"]
    ]:
        """Left singular vectors, singular values, largest first, and right singular vectors as rows."""
        left, right = torch.linalg.qr(self.left), torch.linalg.qr(self.right.mT)
        turn, values, back = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
        return left.Q @ turn, values, back @ right.Q.mT

    def eigenvalues(self) -> Complex[Tensor, "*stack rank"]:
        """The eigenvalues that can differ from zero: those of the small matrix `right @ left`. Square matrices only."""
        if self.left.shape[-2] != self.right.shape[-1]:
            raise ValueError(
                f"only a square matrix has eigenvalues, this one is {self.left.shape[-2]} by {self.right.shape[-1]}"
            )
        return torch.linalg.eigvals(self.right @ self.left)

    def largest(
        self, count: int, block: int = 2048
    ) -> tuple[Float[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        """The largest entries of one matrix, with their rows and columns, largest first.

        block: rows held in memory at a time.
        """
        best: tuple[Tensor, Tensor, Tensor] | None = None
        for start in range(0, self.left.shape[-2], block):
            values = self.left[start : start + block] @ self.right
            top = values.flatten().topk(min(count, values.numel()))
            columns = values.shape[1]
            found = (top.values, start + top.indices // columns, top.indices % columns)
            if best is not None:
                found = tuple(torch.cat(two) for two in zip(best, found, strict=True))  # type: ignore[assignment]
            order = found[0].topk(min(count, len(found[0]))).indices
            best = (found[0][order], found[1][order], found[2][order])
        assert best is not None
        return best


def copying(eigenvalues: Complex[Tensor, "*stack rank"]) -> Float[Tensor, "*stack"]:
    """Sum of the eigenvalues over the sum of their sizes: 1 where every direction is written back, -1 where it is
    written back negated, around 0 for a matrix without preference. 0 for the zero matrix."""
    size = eigenvalues.abs().sum(dim=-1)
    total: Tensor = eigenvalues.real.sum(dim=-1)
    return torch.where(size > 0, total / torch.where(size > 0, size, 1.0), 0.0)


def _triangle(tall: Float[Tensor, "*stack row rank"]) -> Float[Tensor, "*stack small rank"]:
    """R of the QR decomposition: all that norms and singular values see of a factor."""
    found: Tensor = torch.linalg.qr(tall, mode="r").R
    return found
