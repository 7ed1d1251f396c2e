"""Generated models whose first block is one of these."""

from .check import generated
from .describe import Dots, FieldWeighted, Pairs

test_pairs = generated(6, Pairs)
test_fieldweighted = generated(7, FieldWeighted)
test_dots = generated(8, Dots)
