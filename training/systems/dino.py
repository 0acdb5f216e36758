# SPDX-License-Identifier: Apache-2.0
"""Self-distillation without labels (DINO, Caron et al. 2021)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ctxseg_ros.model.model_file import ClassInfo
from training.data.crops import Crops, CropsBatch
from training.data.files import DataError
from training.data.unlabelled import UnlabelledBatch
from training.losses.dino import dino_loss, entropy, sharpened
from training.networks.deployed import AttentionGraph
from training.networks.dino_head import DinoHead
from training.networks.encoder import Encoder, check_multiple
from training.systems.base import UnlabelledSystem
from training.systems.pictures import attention_sheet, log_picture
from training.systems.schedules import cosine, warmed

#: Steps after which the teacher's outputs are looked at. By then the centre, which begins at 0,
#: is where it should be.
LOOK_EVERY = 50
#: A collapse: the entropy of a sample is above this share of log K ...
UNIFORM = 0.99
#: ... or that of the mean of a batch is below this share.
ONE_OUTPUT = 0.05


class Branch(nn.Module):
    """An encoder and its head: views of several sizes in, K outputs for each view."""

    def __init__(self, encoder: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Cosines float32 [V, B, K] of views uint8, each [B, v, 3, H, W]; V is the sum of v."""
        # A pass for each size; the views of one size go through it together.
        tokens = [self.encoder.features(x.transpose(0, 1).flatten(0, 1))[0][:, 0] for x in views]
        return self.head(torch.cat(tokens)).unflatten(0, (-1, len(views[0])))


class DinoSystem(UnlabelledSystem):
    """A student that sees all views of a frame predicts what its teacher says of the global ones.

    The teacher is the slow average of the student. Its outputs are centred by a slow average of
    what it said (over all processes) and sharpened by a low temperature: the one keeps an output
    from taking everything, the other keeps all from becoming alike.

    The recipe is the published one. The learning rate rises linearly over ``warmup`` epochs, then
    falls along a cosine to ``min_lr``; weight decay (of matrices and tokens, not of biases and
    norms) and the teacher's momentum follow a cosine over the whole run; the teacher's temperature
    rises linearly. All are set by the step. The trainer's ``gradient_clip_val`` (published: 3)
    limits the norm of *each parameter's* gradient, as published: as a limit of the norm of all
    together, 3 would be far stricter, and an outburst of the head would slow the encoder down.

    Args:
        backbone, weights, pretrained: see Encoder; without weights it learns from scratch.
        size: (height, width) that the position embedding is stored for, and that the exported
            model is meant for: that of the global views, or a multiple.
        drop_path: stochastic depth of the student. last_heads: see Encoder.
        outputs, hidden, bottleneck: see DinoHead.
        student_temperature: of the student's softmax.
        teacher_temperature: at the first step, and after ``temperature_warmup`` epochs.
        centre_momentum: of the centre, 0 to below 1.
        momentum: of the teacher at the first step; 1 at the last.
        lr: after the warm-up, of AdamW, for each 256 frames of a batch over all processes.
        min_lr: of the last step, whatever the batch. warmup: epochs.
        weight_decay: at the first step, and at the last.
        frozen: epochs in which the head's last layer stays as it is.
        seed: of the stochastic depth, set anew at each step so that a resumed run equals an
            unbroken one.

    Raises:
        ValueError: a temperature or a momentum is out of its range, or the backbone has no CLS
            token; see also Encoder.
    """

    task = "attention"

    def __init__(
        self,
        backbone: str = "vit_small_patch16_224.dino",
        weights: str | None = None,
        pretrained: bool = False,
        size: tuple[int, int] = (224, 224),
        drop_path: float = 0.1,
        last_heads: int | None = None,
        outputs: int = 65_536,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        temperature_warmup: int = 30,
        centre_momentum: float = 0.9,
        momentum: float = 0.996,
        lr: float = 5e-4,
        min_lr: float = 1e-6,
        warmup: int = 10,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        frozen: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._check_ranges()
        encoder = Encoder(
            backbone, size, pretrained, weights, drop_path=drop_path, last_heads=last_heads
        )
        if encoder.vit.cls_token is None:
            raise ValueError(f"{backbone} has no CLS token, which self-distillation learns from")
        self.student = Branch(encoder, DinoHead(encoder.dim, outputs, hidden, bottleneck))
        self.teacher = Branch(
            Encoder(backbone, size, last_heads=last_heads), copy.deepcopy(self.student.head)
        )
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(outputs))
        #: Steps of the run and of an epoch, once the trainer knows.
        self.steps = self.epoch_steps = 1

    def _check_ranges(self) -> None:
        h = self.hparams
        for name, temperature in zip(("first", "last"), h.teacher_temperature, strict=True):
            if not 0 < temperature <= h.student_temperature:
                raise ValueError(
                    f"the {name} teacher_temperature is {temperature}: it must be above 0 and at "
                    f"most student_temperature, {h.student_temperature}, as the teacher is the "
                    "sharper one (published: 0.04 to 0.07, and 0.1)"
                )
        for name in ("momentum", "centre_momentum"):
            if not 0 <= h[name] < 1:
                raise ValueError(f"{name} is {h[name]}: it must be from 0 to below 1")

    def graph(self) -> AttentionGraph:
        """The teacher's encoder as it is deployed, see ``training.networks.deployed``."""
        return AttentionGraph(self.teacher.encoder)

    def class_infos(self) -> list[ClassInfo]:
        """None: a map of attention has no classes."""
        return []

    def embed(self, images: Tensor) -> Tensor:
        """The teacher's CLS tokens [B, D] of images uint8 [B, 3, H, W]."""
        return self.teacher.encoder.features(images)[0][:, 0]

    def on_fit_start(self) -> None:
        data = self.frames
        if not isinstance(data, Crops):
            raise DataError(
                f"self-distillation trains on several views of a frame, not on "
                f"{type(data).__name__}: set --data training.data.crops.Crops"
            )
        for name, side in (("global_size", data.global_size), ("local_size", data.local_size)):
            try:
                check_multiple((side, side), self.student.encoder.patch)
            except ValueError as error:
                raise DataError(f"--data.{name} {side}: {error}") from error
        if self.centre.dtype != torch.float32:
            raise DataError(
                f"the teacher is too slow an average for weights of {self.centre.dtype}: they "
                "would never move; set --trainer.precision bf16-mixed, 16-mixed or 32"
            )
        now = data.summary
        if self.hparams.weights:
            now += f", begun from {Path(self.hparams.weights).name}"
        elif self.hparams.pretrained:
            now += f", begun from timm's {self.hparams.backbone}"
        self.learn_from(now)

    def temperature(self) -> float:
        """The teacher's, at this step."""
        first, last = self.hparams.teacher_temperature
        steps = self.hparams.temperature_warmup * self.epoch_steps
        return (
            last if self.global_step >= steps else first + (last - first) * self.global_step / steps
        )

    def training_step(self, batch: CropsBatch, index: int) -> Tensor:
        large, small, names = batch
        with torch.no_grad():
            said = self.teacher([large])
            target = sharpened(said, self.centre, self.temperature())
        loss = dino_loss(self.student([large, small]), target, self.hparams.student_temperature)
        self.follow_centre(said)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        if (self.global_step + 1) % LOOK_EVERY == 0 or self.global_step + 1 == self.steps:
            self.look_for_collapse(target)
        return self.finite(loss, index, names)

    def over_processes(self, mean: Tensor) -> Tensor:
        """The mean of a tensor of each process; their batches are of one size."""
        return self.trainer.strategy.reduce(mean, reduce_op="mean")

    def follow_centre(self, said: Tensor) -> None:
        """Move the centre towards the mean of the teacher's outputs [V, B, K] of all processes."""
        self.centre.lerp_(self.over_processes(said.mean((0, 1))), 1 - self.hparams.centre_momentum)

    def look_for_collapse(self, target: Tensor) -> None:
        """Log how the teacher's probabilities [V, B, K] spread, and warn if they have collapsed."""
        spread = float(self.over_processes(entropy(target).mean()))
        used = float(entropy(self.over_processes(target.mean((0, 1)))))
        most = math.log(target.shape[-1])
        seen = {
            "train/teacher_entropy": spread,
            "train/teacher_kl_to_uniform": most - used,
            "train/teacher_temperature": self.temperature(),
            "train/teacher_momentum": self.teacher_momentum(),
        }
        self.log_now(seen)
        # An untaught head says almost the same of every frame: no collapse before it has learned.
        taught = self.current_epoch >= max(self.hparams.frozen, self.hparams.warmup)
        if taught and spread > UNIFORM * most:
            rank_zero_warn(
                f"collapse to uniform outputs at step {self.global_step}: the teacher's entropy "
                f"for a view is {spread:.3f} of at most {most:.3f}, it says the same of every "
                "frame. It is not sharp enough: lower teacher_temperature, or raise momentum or "
                "lower lr if it was sharper before."
            )
        elif used < ONE_OUTPUT * most:
            rank_zero_warn(
                f"collapse to one output at step {self.global_step}: the entropy of the teacher's "
                f"mean over the batch is {used:.3f} of at most {most:.3f}, one output takes every "
                "frame. The centre does not keep up: lower centre_momentum or lr, or raise "
                "teacher_temperature."
            )

    def teacher_momentum(self) -> float:
        """The teacher's, at this step."""
        return cosine(self.hparams.momentum, 1.0, self.global_step / self.steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.current_epoch < self.hparams.frozen:
            self.student.head.last.weight.grad = None
        first, last = self.hparams.weight_decay
        decay = cosine(first, last, self.global_step / self.steps)
        optimizer.param_groups[0]["weight_decay"] = decay

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:
            for parameter in self.student.parameters():
                nn.utils.clip_grad_norm_(parameter, gradient_clip_val)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        momentum = self.teacher_momentum()
        super().optimizer_step(*args, **options)
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                slow.lerp_(fast, 1 - momentum)

    def validation_step(self, batch: UnlabelledBatch, index: int) -> None:
        images, _ = batch
        if index == 0 and self.trainer.is_global_zero:
            row = self.teacher.encoder.features(images)[1]
            grid = [s // self.teacher.encoder.patch for s in images.shape[-2:]]
            maps = [row.mean(1), *row.unbind(1)]
            log_picture(self, "val", attention_sheet(images, [m.unflatten(-1, grid) for m in maps]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h, trainer = self.hparams, self.trainer
        accumulated = trainer.accumulate_grad_batches
        trainer.fit_loop.setup_data()  # only then does the trainer know the batches of an epoch
        self.steps = int(trainer.estimated_stepping_batches)
        self.epoch_steps = max(1, int(trainer.num_training_batches) // accumulated)
        frames: Any = self.frames  # on_fit_start, which comes later, checks their kind
        top = h.lr * frames.batch_size * accumulated / 256
        parameters = list(self.student.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=top, weight_decay=h.weight_decay[0])
        least = h.min_lr / top
        return warmed(
            optimizer,
            self.steps,
            h.warmup * self.epoch_steps,
            lambda done: cosine(1.0, least, done),
        )
