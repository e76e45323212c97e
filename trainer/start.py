"""Where a run starts: pretrained weights, or a model of the store with its backbone, its head and its recipe.

StartError   a run can't start from this model; the message says why and what to do instead
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from indexer import pixels
from indexer.manifest import ModelManifest, read_model, verify
from trainer.encoders import Backbone, Encoder, make_backbone
from trainer.export import BACKBONE, HEAD
from trainer.recipe import Recipe, from_dict
from trainer.recipe_files import RecipeError

# Its own weights give a probe the model's own embedding but for rounding; another pooling, for example, does not.
_PROBE_COSINE = 0.999


class StartError(ValueError):
    """A run can't start from a model as asked."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with.

    Attributes:
        encoder: on the device of the run; where its head is not trained, the objective sets it.
        licence: of the weights.
        warnings: what of the model could not be taken over as it is.
    """

    encoder: Encoder
    licence: str
    warnings: tuple[str, ...] = ()

    @property
    def network(self) -> nn.Module:
        """What embeds before training: the encoder, or its backbone where the head is not trained."""
        return self.encoder if self.encoder.head_is_trained else self.encoder.backbone


def recipe_from(directory: Path) -> Recipe:
    """The recipe that a model was learned with, for a run that starts from that model.

    Raises:
        StartError: the recipe is not one that this Kinsight knows.
        ManifestError: the directory is not a model.
    """
    model = read_model(directory)
    try:
        recipe = from_dict(model.recipe)
    except RecipeError as error:
        raise StartError(
            f"model {model.id} was learned by a recipe that this Kinsight does not know, give one: {error}"
        ) from error
    return starting_from(recipe, model.id)


def starting_from(recipe: Recipe, model: str) -> Recipe:
    """A recipe whose run starts from the model of this id."""
    return replace(recipe, encoder=replace(recipe.encoder, from_model=model))


def begin(recipe: Recipe, models: Path, device: torch.device) -> Start:
    """The encoder that a recipe starts from.

    Args:
        recipe: `encoder` decides; its seed is of what starts at random.
        models: the store's directory of models.
        device: where the encoder goes.

    Raises:
        StartError: the recipe's model does not fit the recipe, or holds no weights to start from.
        WeightsError: pretrained weights can't be had.
        ValueError: there is no such backbone.
        ManifestError: the recipe's model is not there, or is damaged.
    """
    torch.manual_seed(recipe.run.seed)
    if not recipe.encoder.from_model:
        backbone = pretrained(recipe, device)
        head = nn.Linear(backbone.channels, recipe.encoder.dim).to(device)
        return Start(encoder=Encoder(backbone, head), licence=backbone.licence)
    directory = models / recipe.encoder.from_model
    model = read_model(directory)
    verify(directory, model)
    _check_fit(model, recipe)
    backbone = _backbone(recipe, str(directory / BACKBONE), device)
    backbone.is_pretrained = False  # it has learned since
    head = nn.Linear(backbone.channels, recipe.encoder.dim)
    if HEAD not in model.files:
        warning = (
            f"model {model.id} was exported without its head, by an older Kinsight: the run starts from its "
            f"backbone, and the head anew, as {recipe.objective.name} sets it"
        )
        return Start(encoder=Encoder(backbone, head.to(device)), licence=model.licence, warnings=(warning,))
    head.load_state_dict(load_file(directory / HEAD))
    encoder = Encoder(backbone, head.to(device), head_is_trained=True)
    return Start(encoder=encoder, licence=model.licence, warnings=_unlike(encoder, model, directory, recipe, device))


def pretrained(recipe: Recipe, device: torch.device) -> Backbone:
    """The recipe's backbone with the weights that it had before any training; raises WeightsError."""
    return _backbone(recipe, recipe.encoder.weights, device)


def _backbone(recipe: Recipe, weights: str, device: torch.device) -> Backbone:
    part = recipe.encoder
    # What a network learned from scratch, it learned with BatchNorm of its own: a later run goes on so.
    frozen = part.freeze_bn and part.weights != "none"
    backbone = make_backbone(
        part.backbone,
        weights,
        size=recipe.data.size,
        view_size=recipe.data.view_size,
        freeze_bn=frozen,
        unit_length=part.unit_length,
    )
    return backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _check_fit(model: ModelManifest, recipe: Recipe) -> None:
    if BACKBONE not in model.files:
        raise StartError(f"model {model.id} holds no {BACKBONE}: it can be searched with, but not learned on from")
    if model.backbone != recipe.encoder.backbone:
        raise StartError(
            f"model {model.id} has the backbone {model.backbone}, and the recipe asks for {recipe.encoder.backbone}; "
            f"leave out --backbone, or start from pretrained weights"
        )
    if HEAD in model.files and model.dim != recipe.encoder.dim:
        raise StartError(
            f"model {model.id} has embeddings of {model.dim} numbers, and the recipe asks for {recipe.encoder.dim}; "
            f"leave out --dim, or start from pretrained weights"
        )


@torch.no_grad()
def _unlike(
    encoder: Encoder, model: ModelManifest, directory: Path, recipe: Recipe, device: torch.device
) -> tuple[str, ...]:
    """A warning where the encoder does not give the model's probe the model's embedding; otherwise nothing."""
    if recipe.data.size != model.pixels.size:
        return ()  # another size is another embedding, and was asked for
    probe = pixels.decode((directory / "probe.png").read_bytes(), model.pixels)
    images = torch.from_numpy(probe[None].copy()).to(device).permute(0, 3, 1, 2).float() / 255
    expected = torch.from_numpy(np.load(directory / "probe.npy", allow_pickle=False))
    cosine = F.cosine_similarity(encoder.eval().embed(images)[0].cpu(), expected, dim=0).item()
    if cosine >= _PROBE_COSINE:
        return ()
    warning = (
        f"model {model.id} embeds its probe otherwise when it is learned on from (cosine {cosine:.4f}): this "
        f"Kinsight computes its encoder in another way; the run starts from its weights all the same"
    )
    return (warning,)
