"""Makes tests/python/data/*.pt with torch: small dumps as SGLang's recorder writes them.

    python3 tests/python/make_pt.py

The files are kept beside the tests so that the reader is tested where there is no torch.
"""

from pathlib import Path

import torch

LAYERS, EXPERTS, SLOTS, TOKENS, TOPK = 3, 6, 8, 5, 2
MAP = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 2, 2], [1, 0, 3, 2, 5, 4, 1, 5]])


def record(number, rank, tokens, detail):
    draw = torch.Generator().manual_seed(10 * number + rank)
    ids = torch.full((LAYERS, tokens, 8), -1, dtype=torch.int32)
    ids[1:, :, :TOPK] = torch.randint(0, SLOTS, (LAYERS - 1, tokens, TOPK), generator=draw,
                                      dtype=torch.int32)  # layer 0 is dense
    ids[1:, -1, 1] = -1
    counts = torch.zeros(LAYERS, SLOTS, dtype=torch.int32)
    for layer in range(LAYERS):
        chosen = ids[layer][ids[layer] >= 0].long()
        counts[layer] = torch.bincount(chosen, minlength=SLOTS)
    out = dict(forward_pass_id=number, rank=rank, gatherer_key="primary")
    if detail:
        out.update(input_ids=list(range(tokens)), positions=list(range(tokens)),
                   extend_seq_lens=[tokens], forward_mode=1, topk_ids_of_layer=ids,
                   misc_objects=[dict(layer_id=1, num_tokens_per_rank=[tokens])])
    out["global_physical_count"] = counts
    return out


def main():
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    count = torch.arange(2 * LAYERS * EXPERTS, dtype=torch.int32).reshape(2, LAYERS, EXPERTS)
    torch.save(dict(rank=0, logical_count=count, average_utilization_rate_over_window=None),
               folder / "stat.pt")
    for rank in range(2):
        for name, detail in (("per_pass", False), ("per_token", True)):
            records = [record(number, rank, TOKENS - rank, detail) for number in (7, 3)]
            torch.save(dict(records=records, last_physical_to_logical_map=MAP),
                       folder / f"{name}_{rank}.pt")
    torch.save(dict(physical_to_logical_map=MAP), folder / "placement.pt")
    # every storage type, a view with strides, a shared storage, an expanded tensor
    base = torch.arange(12).reshape(3, 4)
    torch.save(dict(kinds=[torch.tensor([0, 1, 2]).to(t) for t in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool)], base=base, part=base.t()[1:3],
        expanded=torch.tensor([7]).expand(4), empty=torch.empty(0, 3), plain=[1, 2.5, "x", None]),
        folder / "kinds.pt")


if __name__ == "__main__":
    main()
