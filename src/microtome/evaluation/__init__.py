"""Floor 5, evaluation: where accounts meet the truth, beside their controls."""
