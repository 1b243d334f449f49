"""A network whose head follows the domain that an encoder reads from each image.

Source: "HyDA: Hypernetworks for Test Time Domain Adaptation in Medical Imaging Analysis", section
3. Shapes: B images, F features of the primary network, g of the domain encoder, d numbers of an
embedding, S source domains, k outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.generalization import Place
from trainables.hyper_linear import HyperEmbedding, HyperLinear

MOMENTUM = 0.1  # of the domains' centroids, as of running statistics


class Mix(NamedTuple):
    """A place on the line between two embeddings.

    Attributes:
        start: position of a source domain, `own` for the one that an image has, or `group` for the
            mean of those of its group.
        end: likewise.
        share: of the way from start to end, in [0, 1].
    """

    start: Place
    end: Place
    share: float


class Reading(NamedTuple):
    """What a domain encoder reads from images.

    Attributes:
        scores: (B, S) logits of the source domains.
        features: (B, g) of the layer before.
        embedding: (B, d) from which weights are generated.
    """

    scores: Tensor
    features: Tensor
    embedding: Tensor


class Outputs(NamedTuple):
    """What a network tells of images.

    Attributes:
        scores: (B, k) logits, or standardised numbers.
        features: (B, F) that its head is given.
        reading: of the domain; None: none is read.
        generated: mean square of the generated weights, scalar; None: there are none.
    """

    scores: Tensor
    features: Tensor
    reading: Reading | None = None
    generated: Tensor | None = None


class DomainReader(nn.Module):
    """Domain classifier, and the embedding of its features with the centroids of the sources.

    Args:
        encoder: images to features (B, g); has `num_features`.
        num_sources: S.
        embedding_size: d.
        learns_task: what trains the embedding trains the encoder too.
        generator: source of the random numbers.
    """

    centroids: Tensor
    counts: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        num_sources: int,
        embedding_size: int,
        learns_task: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder, self.learns_task = encoder, learns_task
        num_features = int(encoder.num_features)  # type: ignore[arg-type]  # an int of ours
        self.head = nn.Linear(num_features, num_sources)
        self.embed = HyperEmbedding(num_features, embedding_size, generator=generator)
        self.register_buffer("centroids", torch.zeros(num_sources, embedding_size))
        self.register_buffer("counts", torch.zeros(num_sources))

    def forward(self, images: Tensor) -> Reading:
        """Read the domain of images (B, C, *spatial)."""
        features: Tensor = self.encoder(images)
        known = features if self.learns_task else features.detach()
        return Reading(self.head(features), features, self.embed(known))

    @torch.no_grad()
    def follow(self, embedding: Tensor, positions: Tensor) -> None:
        """Move the centroid of each source (B,) towards the mean of its embeddings (B, d)."""
        for k in range(len(self.centroids)):
            own = embedding[positions == k].float()
            if len(own):
                share = 1.0 if self.counts[k] == 0 else MOMENTUM
                self.centroids[k].lerp_(own.mean(0), share)
                self.counts[k] += len(own)

    def mixed(self, embedding: Tensor, mix: Mix, groups: Tensor | None = None) -> Tensor:
        """Embeddings (B, d) on a line instead of those that were read; groups (B,) are numbers."""
        start, end = (self._at(place, embedding, groups) for place in (mix.start, mix.end))
        return start + mix.share * (end - start)

    def _at(self, place: Place, embedding: Tensor, groups: Tensor | None) -> Tensor:
        if place == "own":
            return embedding
        if place == "group":
            return _means(embedding, groups)
        return self.centroids[place].expand_as(embedding)


def _means(points: Tensor, groups: Tensor | None) -> Tensor:
    """The mean of each point's group, in the place of the point; None: there is one group."""
    if groups is None:
        return points.mean(0, keepdim=True).expand_as(points)
    _, numbers = groups.unique(return_inverse=True)
    is_own = F.one_hot(numbers).to(points.dtype)
    means = (is_own.T @ points) / is_own.sum(0)[:, None]
    return means[numbers]


class Head(nn.Module):
    """Linear layers with ReLU between; those that are external have weights of each sample.

    Args:
        sizes: of the input, of every layer's output.
        external: numbers of layers, from 1, whose weights are generated.
        embedding_size: d.
        bound: of generated weights; see `HyperLinear`.
        generator: source of the random numbers.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        external: Sequence[int] = (),
        embedding_size: int = 1,
        bound: float | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HyperLinear(before, after, embedding_size, bound=bound, generator=generator)
            if number in external
            else nn.Linear(before, after)
            for number, (before, after) in enumerate(pairwise(sizes), start=1)
        )

    def forward(self, x: Tensor, embedding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, k) of features (B, F), and the mean square of what was generated."""
        squares = []
        for number, layer in enumerate(self.layers):
            if number:
                x = F.relu(x)
            if isinstance(layer, HyperLinear):
                assert embedding is not None
                weights = layer.weights(embedding)
                squares.append(weights.float().square().mean())
                x = layer(x, weights)
            else:
                x = layer(x)
        return x, torch.stack(squares).mean() if squares else None


class ConditionedNetwork(nn.Module):
    """A primary network, and what reads the domain for the external layers of its head.

    Args:
        backbone: images to features (B, F).
        head: features to outputs.
        reader: of the domain; None: every layer is internal.
        adversaries: one per source, features (B, F) to two logits, which of source and target.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        *,
        reader: DomainReader | None = None,
        adversaries: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.reader, self.adversaries = reader, adversaries

    def forward(
        self, images: Tensor, mix: Mix | None = None, groups: Tensor | None = None
    ) -> Outputs:
        """Scores of images (B, C, *spatial), with the embedding that was read or a mixed one."""
        features: Tensor = self.backbone(images)
        reading = embedding = None
        if self.reader is not None:
            reading = self.reader(images)
            embedding = reading.embedding
            if mix is not None:
                embedding = self.reader.mixed(embedding, mix, groups)
        scores, generated = self.head(features, embedding)
        return Outputs(scores, features, reading, generated)
