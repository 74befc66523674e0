"""What values of settings can be meant, and what other trainers call a setting."""

_MANY = 10**9  # of steps and their like: more than any run has, and less than what overflows
# Setting -> least and most that can be meant.
RANGES: dict[str, tuple[float, float]] = {
    "bank.num_loras": (-_MANY, 2**16), "bank.rank": (-_MANY, 2**16), "bank.key_dim": (-_MANY, 2**20),  # or BankConfig's
    "train.steps": (1, _MANY), "train.batch": (1, 2**16), "train.accumulate": (1, 2**16), "train.seed": (0, 2**63 - 1),
    "train.minutes": (0, 1e6),
    "checkpoint.every": (1, _MANY), "checkpoint.keep": (1, _MANY), "log.every": (1, _MANY),
    "data.workers": (0, 1024), "data.prompt_tokens": (1, 512), "data.cache_latents": (0, 10**8),
    "data.canvas": (32, 2**14), "data.examples": (1, 2**16), "data.hold_pairs": (0, 2**16),
    "data.swap": (0, 1), "data.hold_tasks": (0, 1), "data.hold_images": (0, 1),
    "objective.entropy": (0, 1e6), "objective.balance": (0, 1e6), "objective.canvas_weight": (0, 1e6),
    "objective.perceptual": (0, 1e6), "objective.shift": (1, 1e6), "objective.guidance": (0, 1e6),
    "objective.caption_dropout": (0, 1), "objective.changed": (0, 1e6), "objective.perceptual_share": (0, 1),
    "optimizer.lr": (0, 1e30), "optimizer.mixer_lr": (0, 1e6), "optimizer.eps": (0, 1),
    "optimizer.weight_decay": (0, 1e6), "optimizer.warmup": (0, _MANY), "optimizer.clip": (0, 1e30),
    "optimizer.ema": (0, 1),
    "validation.every": (0, _MANY), "validation.analogies": (1, 2**16), "validation.steps": (1, 10_000),
    "validation.guidance": (0, 1e6),
}  # fmt: skip
# What other trainers call a setting.
ALIASES = {
    "learning_rate": "optimizer.lr", "batch_size": "train.batch", "train_batch_size": "train.batch",
    "max_train_steps": "train.steps", "gradient_accumulation_steps": "train.accumulate", "resolution": "data.canvas",
    "lr_scheduler": "optimizer.schedule", "lr_warmup_steps": "optimizer.warmup", "mixed_precision": "train.precision",
    "max_grad_norm": "optimizer.clip", "gradient_checkpointing": "base.gradient_checkpointing",
    "network_dim": "bank.rank", "loras_num": "bank.num_loras", "linear": "bank.rank", "output_dir": "run",
    "dataset": "data.manifest", "pretrained_model_name_or_path": "base.path", "save_every": "checkpoint.every",
}  # fmt: skip
