"""Ways to make a model cheaper."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import Applied, Change, Skip, Technique
from .fitting import FitTables
from .fusion import Fuse
from .history import TruncateHistory
from .projection import FactorTables, ProjectPCA, RotateTowers
from .pruning import DropBlocks, PruneDead, PruneFields, PruneHeads, PruneNeurons, PruneRows
from .quantization import CastLinears, QuantizeLinears, QuantizeTables
from .recovery import Recover
from .sharing import ComposeTables, ProductQuantizeTables, RelateTables, ShareEmbeddings

__all__ = [
    "TECHNIQUES",
    "Applied",
    "CastLinears",
    "Change",
    "ComposeTables",
    "DropBlocks",
    "FactorTables",
    "FitTables",
    "Fuse",
    "ProductQuantizeTables",
    "ProjectPCA",
    "PruneDead",
    "PruneFields",
    "PruneHeads",
    "PruneNeurons",
    "PruneRows",
    "QuantizeLinears",
    "QuantizeTables",
    "Recover",
    "RelateTables",
    "RotateTowers",
    "ShareEmbeddings",
    "Skip",
    "Technique",
    "TruncateHistory",
]

TECHNIQUES: Mapping[str, type[Technique]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            PruneFields,
            TruncateHistory,
            RelateTables,
            PruneDead,
            PruneNeurons,
            RotateTowers,
            DropBlocks,
            PruneHeads,
            ProjectPCA,
            Recover,
            Fuse,
            PruneRows,
            ShareEmbeddings,
            FitTables,
            FactorTables,
            ProductQuantizeTables,
            ComposeTables,
            QuantizeTables,
            QuantizeLinears,
            CastLinears,
        )
    }
)
"""Every technique by its name, in order of application."""
