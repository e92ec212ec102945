"""SAM-Med3D as a network nnU-Net can train and run: any patch, every class without a prompt, prompts where given.

What this project adds to the published network, and says is its own: one learned token per output channel, which
takes the place of the clicks and makes the automatic segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.model import SAMMed3D
from nnunet_ext.architectures.sam_med3d.transformer import Attention
from nnunet_ext.prompts.raster import Drawn, read_channel
from nnunet_ext.prompts.rounds import interact
from nnunet_ext.prompts.simulate import uniform_clicks
from nnunet_ext.prompts.types import Points

# Logit a given mask gets: what trained networks answer well inside and outside an object.
MASK_LOGIT = 4.0
# Sharpness of the attention between clicks and image before training.
ATTENTION_GAIN = 3.0
# Shares of the training batches that start from the automatic segmentation, and that see all clicks so far.
START_FROM_AUTOMATIC, ACCUMULATE = 0.25, 0.5


@dataclass(frozen=True)
class TrainingOutput:
    """Logits of one training step: every round (batch, 1, *patch), and automatic (batch, num_classes, *patch)."""

    rounds: tuple[Tensor, ...]
    automatic: Tensor


@dataclass(frozen=True)
class Interaction:
    """How clicks are shown in one training step.

    Attributes:
        accumulate: whether a round sees all clicks so far, as in use, or the newest alone.
        from_automatic: whether the first round starts from the automatic segmentation.
        mask_only: rounds without a click.
    """

    accumulate: bool
    from_automatic: bool = False
    mask_only: frozenset[int] = frozenset()

    @classmethod
    def draw(cls, rounds: int) -> Interaction:
        """As a training step draws it."""
        accumulate, from_automatic = (float(torch.rand(())) < share for share in (ACCUMULATE, START_FROM_AUTOMATIC))
        return cls(accumulate, from_automatic, mask_only_rounds(rounds))


class PromptableSAMMed3D(nn.Module):
    """SAM-Med3D behind nnU-Net's interface.

    Args:
        input_channels: channels of the image, without prompts.
        num_classes: output channels: labels with the background, or regions.
        deep_supervision: must be False; there is one output.
        sizes: of `SAMMed3D`; None for the published ones.
        rounds: prompts per training step.
        normalise_windows: to zero mean and unit variance over the voxels above a window's least, as the published
            weights saw images; where nothing was trained on nnU-Net's normalisation.

    Raises:
        ValueError: deep supervision asked for, or sizes that do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        sizes: Mapping[str, Any] | None = None,
        rounds: int = 11,
        normalise_windows: bool = False,
    ):
        super().__init__()
        if deep_supervision:
            raise ValueError("SAM-Med3D has one output; train it with nnUNetTrainerSAMMed3D, without deep supervision")
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {rounds}")
        self.deep_supervision = False
        self.input_channels, self.num_classes, self.rounds = input_channels, num_classes, rounds
        self.normalise_windows = normalise_windows
        self.sam = SAMMed3D(input_channels, **(sizes or {}))
        # nnU-Net's fine-tuning skips parameters whose name holds `.seg_layers.`: classes differ between data sets.
        self.automatic = nn.Module()
        self.automatic.seg_layers = nn.Embedding(num_classes, self.sam.prompt_encoder.embed_dim)
        # Whether outputs are regions, which may overlap; set by the trainer and kept with the weights.
        self.register_buffer("has_regions", torch.zeros(1, dtype=torch.bool))
        self.has_regions: Tensor
        self._initialise()
        decoder = self.sam.mask_decoder
        # Never reached or never scored, as in the published training. Distributed training needs them frozen.
        for part in (self.sam.prompt_encoder.no_mask_embed, decoder.iou_prediction_head):
            part.requires_grad_(False)
        for part in decoder.output_hypernetworks_mlps[1:]:
            part.requires_grad_(False)

    def _initialise(self) -> None:
        """Small positions and tokens to begin with, as vision transformers have them; all zeros would stay alike."""
        encoder = self.sam.image_encoder
        nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
        for name, parameter in encoder.named_parameters():
            if "blocks." in name and name.endswith(".weight") and parameter.dim() == 2:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif "blocks." in name and name.endswith("bias"):
                nn.init.zeros_(parameter)
        # A click should look where it is from the first step on; learning that from unrelated projections takes far
        # longer than learning all the rest. So queries and keys between clicks and image begin alike, positions are
        # smooth over a cell of the grid, and what is added to positions begins small. Loaded weights replace all this.
        prompts, transformer = self.sam.prompt_encoder, self.sam.mask_decoder.transformer
        for module in transformer.modules():
            if isinstance(module, Attention) and module.q_proj.out_features < module.q_proj.in_features:
                nn.init.orthogonal_(module.q_proj.weight, gain=ATTENTION_GAIN)
                module.k_proj.load_state_dict(module.q_proj.state_dict())
        nn.init.normal_(prompts.pe_layer.positional_encoding_gaussian_matrix, std=0.5)
        for embedding in (*prompts.point_embeddings, prompts.not_a_point_embed):
            nn.init.normal_(embedding.weight, std=0.3)
        for norm in (*(layer.norm1 for layer in transformer.layers), encoder.neck[3]):
            nn.init.constant_(norm.weight, 0.4)

    # One window ------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor) -> Tensor:
        """Image embeddings (batch, dim, g, g, g) of windows (batch, input_channels, *patch) of any size."""
        if self.normalise_windows:
            x = torch.stack([_normalised(window) for window in x])
        cube = (self.sam.img_size,) * 3
        if tuple(x.shape[2:]) != cube:
            x = F.interpolate(x, cube, mode="trilinear", align_corners=False)
        return self.sam.image_encoder(x)

    def segment(self, embedding: Tensor, points: Points | None, low_res: Tensor, patch: torch.Size) -> Tensor:
        """Low-resolution logits (batch, 1, m, m, m) for clicks on a window of size `patch`, and the logits before.

        Args:
            embedding: of `embed`, one per sample or one for all.
            points: clicks in voxels of the window; None for the mask alone.
            low_res: logits (batch, 1, m, m, m), zeros at first.
            patch: voxels per axis of the window.
        """
        if points is None or points.labels.shape[1] == 0:
            return self.sam.decode(embedding, None, None, low_res)[0]
        scale = torch.tensor([self.sam.img_size / n for n in patch], device=embedding.device)
        position = (points.index + 0.5) * scale - 0.5
        return self.sam.decode(embedding, position, points.labels, low_res)[0]

    def no_mask(self, batch: int, device: torch.device) -> Tensor:
        """The low-resolution logits before the first prompt."""
        return torch.zeros(batch, 1, *(self.sam.mask_size,) * 3, device=device)

    def mask_prompt(self, mask: Tensor) -> Tensor:
        """Low-resolution logits that stand for a mask (batch, 1, *patch) of 0 and 1."""
        share = F.interpolate(mask.float(), (self.sam.mask_size,) * 3, mode="area")
        return 2 * MASK_LOGIT * (share - 0.5)

    @staticmethod
    def upscale(low_res: Tensor, patch: torch.Size) -> Tensor:
        """Logits on the window's own grid."""
        return F.interpolate(low_res.float(), tuple(patch), mode="trilinear", align_corners=False)

    def all_classes(self, embedding: Tensor) -> Tensor:
        """Low-resolution logits (batch, num_classes, m, m, m) without any prompt."""
        batch, classes = len(embedding), self.num_classes
        tokens = self.automatic.seg_layers.weight[:, None].repeat(batch, 1, 1)  # (batch * classes, 1, dim)
        _, dense = self.sam.prompt_encoder(None, None, self.no_mask(1, embedding.device))
        position = self.sam.prompt_encoder.dense_position()
        each = embedding.repeat_interleave(classes, 0)
        low_res, _ = self.sam.mask_decoder(each, position, tokens, dense)
        return low_res.reshape(batch, classes, *low_res.shape[2:])

    # nnU-Net ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        objects: Tensor | None = None,
        channel: Tensor | None = None,
        interaction: Interaction | None = None,
    ) -> Tensor | TrainingOutput:
        """Segment all classes; with `objects`, simulate clicks on one object per sample as well.

        Args:
            x: (batch, input_channels, *patch); in prediction also with one channel per foreground label of drawn
                prompts, which `nnUNetv2_predict -prev_stage_predictions` appends.
            objects: (batch, 1, *patch) of 0 and 1, in training.
            channel: (batch,) output channel each object belongs to, in training.
            interaction: how clicks are shown, in training; None draws it.

        Returns:
            Logits (batch, num_classes, *patch), or the logits of the whole interaction.

        Raises:
            ValueError: another number of channels.
        """
        if objects is not None and channel is not None:
            return self._train(x, objects, channel, interaction or Interaction.draw(self.rounds))
        drawn = x.shape[1] - self.input_channels
        if drawn == 0:
            return self.upscale(self.all_classes(self.embed(x)), x.shape[2:])
        if drawn != self.num_classes - 1 or bool(self.has_regions):
            expected = f"{self.input_channels} channels"
            if not bool(self.has_regions):
                expected += f", or {self.num_classes - 1} more with prompts drawn for each label"
            raise ValueError(f"SAM-Med3D was built for {expected}, not {x.shape[1]}; regions take prompt files only")
        image, prompts = x[:, : self.input_channels], x[:, self.input_channels :] > 0.5
        return torch.cat([self._with_drawn(image[i : i + 1], prompts[i]) for i in range(len(x))])

    def _train(self, x: Tensor, objects: Tensor, channel: Tensor, interaction: Interaction) -> TrainingOutput:
        patch, embedding = x.shape[2:], self.embed(x)
        automatic = self.all_classes(embedding)
        low_res, start = self.no_mask(len(x), x.device), None
        if interaction.from_automatic:
            guess = self._marked(automatic.detach(), channel)
            low_res = self.mask_prompt(guess)
            start = self.upscale(low_res, patch)[:, 0] > 0
        without = interaction.mask_only

        def step(points: Points, number: int) -> Tensor:
            nonlocal low_res
            shown = None if number in without else points if interaction.accumulate else points.newest()
            low_res = self.segment(embedding, shown, low_res, patch)
            return self.upscale(low_res, patch)[:, 0]

        logits = interact(objects[:, 0] > 0.5, uniform_clicks, step, self.rounds, start=start, mask_only=without)
        return TrainingOutput(tuple(round_[:, None] for round_ in logits), self.upscale(automatic, patch))

    def _marked(self, automatic: Tensor, channel: Tensor) -> Tensor:
        """The object's own voxels in automatic logits, (batch, 1, m, m, m) of 0 and 1."""
        own = torch.stack([logits[c] > 0 for logits, c in zip(automatic, channel, strict=True)])
        best = automatic.argmax(1) == channel[:, None, None, None]
        return torch.where(self.has_regions, own, best)[:, None].float()

    def _with_drawn(self, image: Tensor, prompts: Tensor) -> Tensor:
        """Automatic logits of one window, with the classes that have prompts in it decided by these.

        A class with prompts beats the others where its mask says so: its logit is the mask's above the largest other.
        """
        patch, embedding = image.shape[2:], self.embed(image)
        logits = self.upscale(self.all_classes(embedding), patch)
        drawn = [read_channel(channel) for channel in prompts.cpu().numpy()]
        prompted = [c for c, found in enumerate(drawn) if found]
        if not prompted:
            return logits
        others = [0] + [c + 1 for c in range(len(drawn)) if c not in prompted]
        largest = logits[:, others].amax(1)
        for c in prompted:
            logits[:, c + 1] = largest + self._replay(embedding, drawn, c, patch)[:, 0]
        return logits

    def _replay(self, embedding: Tensor, drawn: list[Drawn], c: int, patch: torch.Size) -> Tensor:
        """Logits (1, 1, *patch) of a class: its mask, its clicks one after the other, then the others' as negatives."""
        device = embedding.device
        low_res = self.no_mask(1, device)
        if drawn[c].mask is not None:
            low_res = self.mask_prompt(torch.from_numpy(drawn[c].mask)[None, None].to(device))
        clicks = [(index, 1) for index in drawn[c].clicks]
        clicks += [(index, 0) for other, found in enumerate(drawn) if other != c for index in found.clicks]
        index = torch.tensor([index for index, _ in clicks], device=device).reshape(1, -1, 3)
        labels = torch.tensor([label for _, label in clicks], device=device, dtype=torch.int64)[None]
        if not clicks:
            low_res = self.segment(embedding, None, low_res, patch)
        for n in range(1, len(clicks) + 1):
            low_res = self.segment(embedding, Points(index[:, :n], labels[:, :n]), low_res, patch)
        return self.upscale(low_res, patch)


def _normalised(window: Tensor) -> Tensor:
    """Each channel (channels, *patch) with zero mean and unit variance over its voxels above the least."""
    channels = []
    for channel in window:
        above = channel[channel > channel.min()]
        enough = above.numel() > 1
        channels.append((channel - above.mean()) / above.std().clamp(min=1e-6) if enough else channel)
    return torch.stack(channels)


def mask_only_rounds(rounds: int) -> frozenset[int]:
    """Rounds of a training step in which only the mask is given: the last, and one drawn from the middle."""
    chosen = {rounds - 1} if rounds > 1 else set()
    if rounds >= 5:
        chosen.add(int(torch.randint(2, rounds - 2, ())))
    return frozenset(chosen)
