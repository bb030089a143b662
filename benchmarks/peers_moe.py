"""An arm of `benchmarks.peers`: MoE-PEFT, in an environment of its own.

Does what its `train` does with the batches of its `Dispatcher`, without data files and a tokenizer.  Reads fits as
lists of sequences, one line of JSON a turn, and answers with the processor time that they took."""

import json
import sys
import time

import moe_peft
import torch
from moe_peft.common import LLMBatchConfig, LLMModelInput, LoraConfig

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    folder, rank, alpha = sys.argv[1], int(sys.argv[2]), int(float(sys.argv[3]))
    model = moe_peft.LLMModel.from_pretrained(folder, device="cpu", load_dtype=torch.float32)
    for line in sys.stdin:
        fits = json.loads(line)
        started = time.process_time()
        optimisers = []
        for k in range(len(fits)):
            # It asserts that there is dropout.
            shape = {"r": rank, "lora_alpha": alpha, "lora_dropout": 1e-6, "target_modules": list(LAYERS)}
            config = LoraConfig.from_config({"name": f"fit {k}", "task_name": "casual", **shape})
            config.adapter_name = f"fit {k}"
            model.init_adapter(config)
            weights = [w for w in model.get_adapter_weight_dict(f"fit {k}").values() if w.requires_grad]
            optimisers.append(torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0))
        for step in range(max(len(fit) for fit in fits)):
            those = [k for k, fit in enumerate(fits) if step < len(fit)]
            longest = max(len(fits[k][step]) for k in those)
            padded = [fits[k][step] + [0] * (longest - len(fits[k][step])) for k in those]
            outputs = model.forward(
                LLMModelInput(
                    batch_configs_=[
                        LLMBatchConfig(adapter_name_=f"fit {k}", batch_start_idx_=n, batch_end_idx_=n + 1)
                        for n, k in enumerate(those)
                    ],
                    batch_tokens_=padded,
                    batch_labels_=[list(row) for row in padded],
                    batch_masks_=[[int(token != 0) for token in row] for row in padded],
                    # Its dispatcher recomputes; without that it is faster.
                    gradient_checkpoint_="none",
                )
            )
            sum(output.loss for output in outputs).backward()
            for k in those:
                optimisers[k].step()
                optimisers[k].zero_grad()
        seconds = time.process_time() - started
        for k in range(len(fits)):
            model.unload_adapter(f"fit {k}")
        print(f"seconds {seconds}", flush=True)


if __name__ == "__main__":
    main()
