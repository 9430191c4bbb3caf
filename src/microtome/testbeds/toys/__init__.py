"""Toy models and planted data: networks so small, or data so plainly made, that all there is to know is known."""
