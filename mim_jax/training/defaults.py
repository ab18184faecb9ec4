"""The config sections of a training run, with their defaults."""

from __future__ import annotations

from ml_collections import ConfigDict

from mim_jax.fields import optional


def default_config() -> ConfigDict:
    """Every key the training floor reads. Durations are strings: "600 steps", "100 epochs", "1000000 images"."""
    return ConfigDict(
        dict(
            batch_size=256,  # global, over all devices and processes
            duration="100 epochs",
            accumulation_steps=1,  # micro-batches per update; batch_size is their sum
            nonfinite="stop",  # on a non-finite loss or gradient: "stop", or "skip" the update and count it
            max_skipped=10,  # with nonfinite="skip": consecutive skipped updates after which the run stops
            spike_factor=optional(float),  # treats a gradient norm of this many times its running mean as non-finite
            watchdog_minutes=optional(
                float, 30.0
            ),  # without the end of a step, after which stacks are dumped; None: off
            optimizer=optimizer_config(),
            schedule=schedule_config(),
            mesh=dict(data=-1, fsdp=1, tensor=1),  # devices along each axis; -1 takes the rest
            checkpoint=dict(
                every="10 epochs",  # the final state is always saved
                keep=2,
                keep_every=optional(str),  # e.g. "100 epochs": keep these for ever as well
                asynchronous=True,
            ),
            log=dict(
                every="50 steps",
                tensorboard=True,
                progress=optional(bool),  # None: a progress bar on a terminal, plain lines elsewhere
            ),
            init_from=optional(str),  # a run directory, or a weights file read through init_layout
            init_layout=optional(str),  # e.g. "facebookresearch/mae"
            init_parts=optional(tuple),  # top-level parts to take, e.g. ("encoder",); None: everything that fits
            profile=dict(steps=optional(str)),  # "10:15" traces steps 10 to 14 into <workdir>/profile
        )
    )


def optimizer_config() -> ConfigDict:
    """The `optimizer` section; defaults are MAE's pre-training recipe."""
    return ConfigDict(
        dict(
            name="adamw",  # adamw, lamb, lars, lion, muon or sgd
            lr=1.5e-4,  # peak learning rate, for batches of lr_reference_batch
            lr_reference_batch=optional(int, 256),  # lr is multiplied by batch_size / this; None: lr is absolute
            lr_scaling="linear",  # or "sqrt": lr is multiplied by the root of that ratio
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            momentum=0.9,  # lars, sgd
            trust_coefficient=0.001,  # lars
            always_adapt=False,  # lamb: True scales by the trust ratio what no_decay exempts as well
            bias_correction=True,  # lamb: of its moments
            weight_decay=0.05,
            weight_decay_end=optional(float),  # None: constant; else cosine from weight_decay to this over the run
            no_decay=("bias$", "scale$"),  # regular expressions over parameter paths like encoder/norm/scale
            layer_decay=1.0,  # lr multiplier per layer counted down from the head
            frozen=(),  # regular expressions: parameters that stay as they are
            clip_norm=optional(float),  # global gradient norm
            moment_dtype="float32",  # of Adam's first moment; "bfloat16" halves it
        )
    )


def schedule_config() -> ConfigDict:
    """The `schedule` section. `start_lr` and `end_lr` are in the units of `optimizer.lr`, so they scale with it."""
    return ConfigDict(
        dict(
            name="cosine",  # cosine, linear, constant, rsqrt or step
            warmup="40 epochs",  # linear from start_lr to the peak
            warmup_reaches_peak=False,  # True: its own last step has the peak, as in BEiT; else the one after it
            start_lr=0.0,
            end_lr=0.0,  # of cosine and linear
            length=optional(str),  # of both, e.g. "800 epochs", on whose way a shorter run stops; None: the duration
            cosine_includes_warmup=False,  # True: the cosine's clock starts with the run (timm's t_initial counting)
            reaches_end=False,  # True: the run's last step has end_lr and weight_decay_end; else the one after it would
            milestones=(),  # of step: durations at which the rate is multiplied by gamma
            gamma=0.1,
            offset=0,  # update i (from 0) uses the rate of step max(i + offset, 0); I-JEPA advances its clock first
        )
    )
