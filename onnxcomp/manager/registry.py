"""Which passes exist, built in and installed, found by name and loaded on first use."""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from importlib.metadata import EntryPoint, entry_points

from onnxcomp.errors import UsageError
from onnxcomp.manager.base import Pass

ENTRY_POINT_GROUP = "onnxcomp.passes"

# in the order in which a pipeline usually runs them
BUILTIN = {
    "fold-constants": "onnxcomp.passes.fold_constants:FoldConstants",
    "cleanup": "onnxcomp.passes.cleanup:Cleanup",
    "compute-float32": "onnxcomp.passes.compute_float32:ComputeFloat32",
    "fuse-batchnorm": "onnxcomp.passes.fuse_batchnorm:FuseBatchNorm",
    "fuse-slices": "onnxcomp.passes.fuse_slices:FuseSlices",
    "chain-pools": "onnxcomp.passes.chain_pools:ChainPools",
    "conv-before-resize": "onnxcomp.passes.conv_before_resize:ConvBeforeResize",
    "convolve-shortcuts": "onnxcomp.passes.convolve_shortcuts:ConvolveShortcuts",
    "fuse-activations": "onnxcomp.passes.fuse_activations:FuseActivations",
    "split-softmax": "onnxcomp.passes.split_softmax:SplitSoftmax",
    "widen-conv": "onnxcomp.passes.widen_conv:WidenConv",
    "gather-rows": "onnxcomp.passes.gather_rows:GatherRows",
    "clip-weights": "onnxcomp.passes.clip_weights:ClipWeights",
    "prune-blocks": "onnxcomp.passes.prune_blocks:PruneBlocks",
    "prune-channels": "onnxcomp.passes.prune_channels:PruneChannels",
    "prune-weights": "onnxcomp.passes.prune_weights:PruneWeights",
    "distill": "onnxcomp.passes.distill:Distill",
    "drop-zero-channels": "onnxcomp.passes.drop_zero_channels:DropZeroChannels",
    "flatten-conv": "onnxcomp.passes.flatten_conv:FlattenConv",
    "winograd-conv": "onnxcomp.passes.winograd_conv:WinogradConv",
    "multiply-sums": "onnxcomp.passes.multiply_sums:MultiplySums",
    "quantize-qdq": "onnxcomp.passes.quantize_qdq:QuantizeQdq",
    "quantize-dynamic": "onnxcomp.passes.quantize_dynamic:QuantizeDynamic",
    "quantize-weights": "onnxcomp.passes.quantize_weights:QuantizeWeights",
    "store-weights": "onnxcomp.passes.store_weights:StoreWeights",
    "mixed-precision": "onnxcomp.passes.mixed_precision:MixedPrecision",
    "convert-float16": "onnxcomp.passes.convert_float16:ConvertFloat16",
    "compact": "onnxcomp.passes.compact:Compact",
}


def names() -> list[str]:
    """Names of all passes, the built-in ones first.

    Raises:
        UsageError: an installed package uses the name of another pass.
    """
    return [*BUILTIN, *sorted(_installed())]


def find(name: str) -> type[Pass]:
    """The class of a pass by its name.

    Raises:
        UsageError: there is no such pass, or an installed package clashes with another.
    """
    installed = _installed()
    if name in BUILTIN:
        module, attribute = BUILTIN[name].split(":")
        cls: type[Pass] = getattr(importlib.import_module(module), attribute)
        return cls
    if name not in installed:
        close = difflib.get_close_matches(name, [*BUILTIN, *installed], 1)
        raise UsageError(
            f"there is no pass {name!r}",
            where="the pass spec",
            do=f"did you mean {close[0]}?" if close else "see onnxcomp passes for the list",
        )
    loaded = installed[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)) or loaded.name != name:
        raise UsageError(
            f"the installed pass {name!r} is not a Pass of that name",
            where=f"entry point {installed[name].value}",
            do="its package must register a subclass of onnxcomp.Pass under the pass's own name",
        )
    return loaded


def _installed() -> dict[str, EntryPoint]:
    return _installed_on(tuple(sys.path))


@functools.cache
def _installed_on(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What is installed on a path, looked for once: that reads every package's metadata, and specs are many."""
    del path
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in BUILTIN or (entry.name in found and found[entry.name].value != entry.value):
            raise UsageError(
                f"two passes are called {entry.name!r}",
                where=f"entry point {entry.value}",
                do="uninstall the package, or ask its author for another name",
            )
        found[entry.name] = entry
    return found
