"""An arm of `benchmarks.peers`: SkyRL-tx's JAX backend, in an environment of its own.

Its adapters go on from turn to turn: for a new one it compiles the update again, which would be most of the time.
Reads fits as lists of sequences, one line of JSON a turn, and answers with the processor time that they took."""

import json
import sys
import time

from tx.tinker import types
from tx.tinker.backends.jax import JaxBackendConfig, JaxBackendImpl


def main() -> None:
    folder, rank, alpha = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    backend = None
    adam = types.AdamParams(learning_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    for line in sys.stdin:
        fits = json.loads(line)
        if backend is None:
            config = JaxBackendConfig(max_lora_adapters=len(fits) + 1, max_lora_rank=rank)
            backend = JaxBackendImpl(folder, config)
            for k in range(len(fits)):
                backend.create_model(f"fit {k}", types.LoraConfig(rank=rank, alpha=alpha, seed=k))
        started = time.process_time()
        for step in range(max(len(fit) for fit in fits)):
            those = [k for k, fit in enumerate(fits) if step < len(fit)]
            ids = [fits[k][step] for k in those]
            ones, zeros = ([[x] * (len(one) - 1) for one in ids] for x in (1.0, 0.0))
            backend.forward_backward(
                types.PreparedModelPassBatch(
                    all_input_ids=[one[:-1] for one in ids],
                    all_targets=[one[1:] for one in ids],
                    all_token_weights=ones,
                    all_sampling_logprobs=zeros,
                    all_advantages=zeros,
                    all_model_ids=[f"fit {k}" for k in those],
                    all_loss_fn_types=[types.LOSS_TYPES["cross_entropy"]] * len(those),
                    all_loss_fn_configs=[None] * len(those),
                    request_batch_slices=[(f"{k}", f"fit {k}", n, n + 1) for n, k in enumerate(those)],
                )
            )
            for k in those:
                backend.optim_step(f"fit {k}", types.OptimStepInput(adam_params=adam))
        backend.accumulated_grads.counts.block_until_ready()
        seconds = time.process_time() - started
        print(f"seconds {seconds}", flush=True)


if __name__ == "__main__":
    main()
