# SPDX-License-Identifier: Apache-2.0
"""Published weights of vision transformers: reading them, and finding the network they are of."""

from __future__ import annotations

import argparse
import math
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from training.places import expanded

#: timm names that a file can be of, most likely first: without a head, and with one.
_SELF_SUPERVISED = ("*.dino", "*dinov2*", "vit_*dinov3*")
_SUPERVISED = ("deit_*patch*", "vit_*.augreg*")
#: Token width by the size in a timm name. Heads are 64 wide in all of them.
_WIDTHS = {
    "tiny": 192,
    "small": 384,
    "base": 768,
    "large": 1024,
    "huge": 1280,
    "giant": 1536,
    "7b": 4096,
}
_PATCHES = "patch_embed.proj.weight"
#: What only training needs: heads, masking, and tables that timm computes.
_LEFT_OUT = re.compile(
    r"(head|head_dist|pre_logits|projectors|local_cls_norm|rope|rope_embed)\b.*|mask_token"
    r"|.*\.(bias_mask|periods)"
)
#: In names of the average of the weights, which is better than the weights themselves.
_AVERAGED = re.compile(r"teacher|^average\.")
_SHOWN = 4
#: What comes of reading a file as what it is not; of text, whatever a pickle of it would say.
_NO_WEIGHTS = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    ValueError,
    struct.error,
)


class WeightsError(ValueError):
    """A file holds no weights, or those of another network; the message says what fits."""


@dataclass(frozen=True)
class Weights:
    """A backbone's tensors under timm's names, and whether a classification head came along.

    What no shape tells, and only a checkpoint of ours says:

    - ``architecture``: its timm name.
    - ``grid``: (rows, columns) of patches of the position embedding.
    - ``last_heads``: of the last block's attention, where they are others than the architecture's.
    """

    path: Path
    tensors: dict[str, Tensor]
    head: bool
    architecture: str | None = None
    grid: tuple[int, int] | None = None
    last_heads: int | None = None


def read_weights(path: str | Path) -> Weights:
    """A backbone from ``.safetensors`` or ``.pth``, without unpickling code.

    Takes what timm, DeiT (``model``), DINO (the backbone, or the ``teacher`` of a full training
    checkpoint), DINOv2, DINOv3 and this project's own checkpoints have.

    Raises:
        FileNotFoundError: no such file.
        PlaceError: the path names an environment variable that is not set.
        WeightsError: damaged, in need of unpickling code, or no ViT's weights.
    """
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"backbone weights {path}: no such file")
    saved = _load(path)
    state = _tensors(saved)
    backbones = [name.removesuffix(_PATCHES) for name in state if name.endswith(_PATCHES)]
    if not backbones:
        first = ", ".join(f"{k} {_shape(v)}" for k, v in list(state.items())[:_SHOWN])
        raise WeightsError(
            f"{path}: no weights of a ViT: no name ends in {_PATCHES}; found {first or 'no tensor'}"
        )
    prefix = next((name for name in backbones if _AVERAGED.search(name)), backbones[0])
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    for name, dims in ((_PATCHES, 4), ("pos_embed", 3)):
        if name in state and state[name].ndim != dims:
            found = _shape(state[name])
            raise WeightsError(f"{path}: {name} is {found}, in a ViT it has {dims} dimensions")
    head = any(k.startswith("head.") for k in state)
    recipe = _recipe(saved)
    return Weights(
        path,
        _timm_names(state),
        head,
        architecture=recipe.get("backbone"),
        grid=_recipe_grid(recipe, state[_PATCHES].shape[-1]),
        last_heads=_last_heads(saved, recipe),
    )


def load_weights(vit: nn.Module, name: str, weights: Weights, patch: int | None = None) -> None:
    """Load a backbone into timm's ``name``, its position embedding resampled to the ViT's grid.

    Args:
        patch: side, in pixels, that the kernels of the patch embedding are resampled to: as
            FlexiViT does, so that they say of an enlarged patch what they said of the patch. None
            takes them as they are.

    Raises:
        WeightsError: it is another network's; names the first names and shapes that differ, and
            the timm names that fit.
    """
    tensors = dict(weights.tensors)
    if patch is not None:
        tensors[_PATCHES] = resample_patch_embed(tensors[_PATCHES].float(), [patch, patch])
    if wrong := mismatches(vit, replace(weights, tensors=tensors)):
        fits = architectures(weights)
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise WeightsError(
            f"{weights.path} are not the weights of {name}: {'; '.join(wrong[:_SHOWN])}{more}. "
            + (f"They fit {', '.join(fits[:_SHOWN])}" if fits else "No architecture known fits")
        )
    if "pos_embed" in tensors:
        tensors["pos_embed"] = _positions(vit, weights)
    vit.load_state_dict(tensors)


def mismatches(vit: nn.Module, weights: Weights) -> list[str]:
    """Each name whose shape in the weights is not the ViT's, in words; the position grid is free.

    The ViT may be on the meta device.
    """
    tensors = weights.tensors
    wanted = {k: v for k, v in vit.state_dict().items() if not _LEFT_OUT.fullmatch(k)}
    wrong = []
    for name, tensor in wanted.items():
        if name not in tensors:
            wrong.append(f"{name} is missing, {_shape(tensor)} expected")
        elif name == "pos_embed":
            found, prefix = tensors[name].shape, _prefix(vit)
            same = weights.grid is None and found == tensor.shape
            if found[2] != tensor.shape[2] or not (_grid(weights, prefix) or same):
                grid = "x".join(map(str, weights.grid)) if weights.grid else "a square"
                wrong.append(
                    f"{name} is {_shape(tensors[name])}, {grid} grid and {prefix} more of "
                    f"{tensor.shape[2]} expected"
                )
        elif tensors[name].shape != tensor.shape:
            wrong.append(f"{name} is {_shape(tensors[name])}, {_shape(tensor)} expected")
    return wrong + [f"{k} {_shape(v)} is too many" for k, v in tensors.items() if k not in wanted]


def architectures(weights: Weights) -> list[str]:
    """timm names that the weights fit, most likely first. Shapes do not tell all of them apart."""
    width, _, patch, _ = weights.tensors[_PATCHES].shape
    families = (_SELF_SUPERVISED, _SUPERVISED)
    names = [
        name
        for family in (families[::-1] if weights.head else families)
        for pattern in family
        for name in timm.list_pretrained(pattern)
        if f"_patch{patch}_" in name and _WIDTHS.get(name.split("_")[1]) == width
    ]
    fits: dict[str, bool] = {}  # whether the position grid is the same, too; by bare name
    for name in names:
        bare = name.split(".")[0]
        if "distilled" not in bare and bare not in fits:
            with torch.device("meta"):
                vit = timm.create_model(bare, num_classes=0, global_pool="")
            if not mismatches(vit, weights):
                grid = vit.state_dict().get("pos_embed")
                fits[bare] = grid is None or grid.shape == weights.tensors["pos_embed"].shape
    found = [name for name in names if name.split(".")[0] in fits]
    return sorted(found, key=lambda name: not fits[name.split(".")[0]])


def stored_size(weights: Weights, patch: int | None = None) -> tuple[int, int] | None:
    """(height, width) of the position grid, square if none is known; None if there is none.

    In pixels of the weights' own patches, or of those that they are resampled to.
    """
    if "pos_embed" not in weights.tensors:
        return None
    # Registers never have one; whether the CLS token has shows in the count being a square.
    grid = weights.grid or _grid(weights, 0) or _grid(weights, 1)
    pixels = patch or weights.tensors[_PATCHES].shape[-1]
    return (grid[0] * pixels, grid[1] * pixels) if grid else None


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # DINO's full checkpoints hold their command line, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"{path}: damaged, no weights, or in need of unpickling") from error
        needs = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        raise WeightsError(
            f"{path}: needs unpickling of code ({', '.join(needs)}), which could do anything. "
            "Save its state_dict alone, best as .safetensors"
        ) from error
    except _NO_WEIGHTS as error:
        raise WeightsError(f"{path}: damaged, or no .pth or .safetensors file: {error}") from error


def _tensors(saved: object) -> dict[str, Tensor]:
    """The tensors of a file by name, out of what they may be wrapped in."""
    while isinstance(saved, dict):
        inner = [saved[k] for k in ("teacher", "model", "state_dict") if k in saved]
        if not inner or not isinstance(inner[0], dict):
            return {k: v for k, v in saved.items() if isinstance(v, Tensor)}
        saved = inner[0]
    return {}


def _recipe(saved: object) -> dict[str, Any]:
    """The hyperparameters of a checkpoint of ours, nothing of other files."""
    if isinstance(saved, dict) and "system" in saved:
        return dict(saved.get("hyper_parameters", {}))
    return {}


def _recipe_grid(recipe: dict[str, Any], patch: int) -> tuple[int, int] | None:
    """See ``Weights``; ``patch`` is the side that the checkpoint's patches have."""
    if "size" not in recipe:
        return None
    height, width = recipe["size"]
    return height // patch, width // patch


def _last_heads(saved: Any, recipe: dict[str, Any]) -> int | None:
    """See ``Weights``."""
    if recipe and saved["system"] == "DistilledSystem":
        # Its student has the heads of its teacher.
        with torch.device("meta"):
            teacher: Any = timm.create_model(recipe["teacher"])
        return int(teacher.blocks[-1].attn.num_heads)
    return recipe.get("last_heads")


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of DINOv2's and DINOv3's own files under the names that timm has for them."""
    state = {k: v for k, v in state.items() if not _LEFT_OUT.fullmatch(k)}
    if {"register_tokens", "cls_token", "pos_embed"} <= state.keys():  # DINOv2
        # timm has no position for CLS there.
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    names = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}
    if "storage_tokens" in state:  # DINOv3
        state["reg_token"] = state.pop("storage_tokens")
        state = _split_biases(state)
        names |= {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
        names |= {"mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x."}
    for old, new in names.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    return state


def _split_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's qkv biases: keys have none, and in some models all are 0, which timm leaves out."""
    split = {k: v for k, v in state.items() if not k.endswith("attn.qkv.bias")}
    for name in state.keys() - split.keys():
        query, _, value = state[name].chunk(3)
        if query.any() or value.any():
            split[name.replace("qkv.bias", "q_bias")] = query
            split[name.replace("qkv.bias", "v_bias")] = value
    return split


def _prefix(vit: Any) -> int:
    """How many tokens before the patches have a position embedding."""
    return 0 if vit.no_embed_class else vit.num_prefix_tokens


def _positions(vit: Any, weights: Weights) -> Tensor:
    """The position embedding [1, prefix + rows * columns, D] at the ViT's grid."""
    prefix, grid = _prefix(vit), vit.patch_embed.grid_size
    stored = _grid(weights, prefix) or grid
    positions = weights.tensors["pos_embed"].float()
    return resample_abs_pos_embed(positions, list(grid), list(stored), prefix)


def _grid(weights: Weights, prefix: int) -> tuple[int, int] | None:
    """The grid of the position embedding after ``prefix`` tokens; None if they do not fill it.

    Where none is known it is a square, as in all published weights.
    """
    tokens = weights.tensors["pos_embed"].shape[1] - prefix
    side = math.isqrt(max(tokens, 0))
    grid = weights.grid or (side, side)
    return grid if math.prod(grid) == tokens > 0 else None


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
