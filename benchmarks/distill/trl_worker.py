"""TRL's GKD on given records, in the peer's own environment. Usage: trl_worker.py SETTINGS."""

import json
import os
import sys
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

told = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(told["student"])
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
models = [
    AutoModelForCausalLM.from_pretrained(told[name], dtype=torch.float32)
    for name in ("student", "teacher")
]
# its own check: which end of beta is KL(teacher || student)
p, q = torch.randn(1, 4, 9), torch.randn(1, 4, 9)
wanted = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
ends = {
    b: float(GKDTrainer.generalized_jsd_loss(q, p, labels=torch.ones(1, 4), beta=b))
    for b in (0.0, 1.0)
}
beta = min(ends, key=lambda b: abs(ends[b] - float(wanted)))
assert abs(ends[beta] - float(wanted)) < 1e-5, (ends, wanted)
config = GKDConfig(
    output_dir=told["out"] + ".state",
    seed=told["seed"],
    max_steps=told["steps"],
    per_device_train_batch_size=told["batch"],
    learning_rate=told["rate"],
    lr_scheduler_type="cosine_with_min_lr",
    lr_scheduler_kwargs={"min_lr_rate": 0.05},
    warmup_steps=round(0.05 * told["steps"]),
    weight_decay=0.01,
    adam_beta2=0.95,
    max_grad_norm=1.0,
    max_length=told["max_tokens"],
    lmbda=0.0,
    beta=beta,
    temperature=1.0,
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    save_strategy="no",
    report_to=[],
    logging_steps=10,
)
trainer = GKDTrainer(
    model=models[0],
    teacher_model=models[1],
    args=config,
    train_dataset=Dataset.from_list(json.loads(Path(told["records"]).read_text())),
    processing_class=tokenizer,
)
trainer.train()
trainer.model.save_pretrained(told["out"])
tokenizer.save_pretrained(told["out"])
