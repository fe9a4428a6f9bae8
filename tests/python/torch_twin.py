"""The model of `lplb train` once more, in PyTorch, from its description: to compare forward, loss,
gradients and whole training runs with. As a program it prints both loss curves on held-out text:

    python3 tests/python/torch_twin.py build/lplb --steps 60 --text FILE
"""

import argparse
import json
import math
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
MASK = (1 << 64) - 1


def read_safetensors(path):
    data = Path(path).read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__")
    out = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        array = np.frombuffer(data[8 + n + first:8 + n + end], DTYPES[entry["dtype"]])
        out[name] = array.reshape(entry["shape"])
    return out


def load_checkpoint(folder):
    manifest = json.loads((Path(folder) / "latest.json").read_text())
    return read_safetensors(Path(folder) / manifest["file"])


# ---- the text's windows, in the trainer's order --------------------------------------------------


class Rng:
    """xoshiro256++ (Blackman and Vigna), seeded through splitmix64."""

    def __init__(self, seed, stream):
        first, _ = self.splitmix(seed)
        x = first ^ ((stream * 0xD1342543DE82EF95 + 1) & MASK)
        self.state = []
        for _ in range(4):
            value, x = self.splitmix(x)
            self.state.append(value)

    @staticmethod
    def splitmix(x):
        x = (x + 0x9E3779B97F4A7C15) & MASK
        z = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31), x

    def below(self, bound):
        limit = MASK - MASK % bound
        while True:
            s = self.state
            x = (s[0] + s[3]) & MASK
            x = (((x << 23) | (x >> 41)) + s[0]) & MASK
            t = (s[1] << 17) & MASK
            s[2] ^= s[0]
            s[3] ^= s[1]
            s[1] ^= s[2]
            s[0] ^= s[3]
            s[2] ^= t
            s[3] = ((s[3] << 45) | (s[3] >> 19)) & MASK
            if x < limit:
                return x % bound


class Windows:
    def __init__(self, text, context, seed):
        self.text = np.frombuffer(text, np.uint8)
        self.context, self.seed, self.epoch = context, seed, -1
        self.count = (len(text) - 1) // context

    def read(self, number):
        """token, target (-1 = not counted), first [context]"""
        if number // self.count != self.epoch:
            self.epoch = number // self.count
            rng = Rng(self.seed, self.epoch)
            self.order = list(range(self.count))
            for i in range(self.count - 1, 0, -1):
                j = rng.below(i + 1)
                self.order[i], self.order[j] = self.order[j], self.order[i]
        at = self.order[number % self.count] * self.context
        token = self.text[at:at + self.context].astype(np.int64)
        target = self.text[at + 1:at + 1 + self.context].astype(np.int64)
        target[token == 0] = -1
        first = np.zeros(self.context, np.int64)
        for t in range(1, self.context):
            first[t] = t if token[t - 1] == 0 else first[t - 1]
        return token, target, first

    def batch(self, number, sequences):
        rows = [self.read(number + i) for i in range(sequences)]
        return [torch.tensor(np.stack(column)) for column in zip(*rows)]


def split_text(path, held_out):
    """A text file as the trainer's corpus: documents begin at form feeds and end with a zero."""
    raw, documents = Path(path).read_bytes(), [b""]
    for line in raw.splitlines(keepends=True):
        if line.startswith(b"\f") and documents[-1]:
            documents.append(b"")
        documents[-1] += line
    text = b"".join(d + b"\0" for d in documents)
    kept = len(text) - int(len(text) * held_out)
    return text[:kept], text[kept:]


# ---- the model -----------------------------------------------------------------------------------


class Twin:
    """Parameters by the names of the checkpoint; `shape` has the options of `lplb train`."""

    def __init__(self, weights, shape):
        self.shape = shape
        self.p = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()
                  if not name.startswith(("optimizer.", "lplb."))}
        dtype = next(iter(self.p.values())).dtype
        self.bias = torch.zeros(shape["layers"], shape["experts"], dtype=dtype)
        self.count = torch.zeros(shape["layers"], shape["experts"])

    def norm(self, x, name):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.p[name]

    def rope(self, x, position):
        half = x.shape[-1] // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = position[:, :, None, None] * frequency
        cosine, sine = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)

    def attention(self, x, layer, first):
        s, (B, T, D) = self.shape, x.shape
        d = D // s["heads"]
        name = f"model.layers.{layer}.self_attn."
        q, k, v = (F.linear(x, self.p[f"{name}{part}_proj.weight"]).view(B, T, -1, d)
                   for part in "qkv")
        position = torch.arange(T) - first
        q, k = self.rope(q, position), self.rope(k, position)
        repeat = s["heads"] // s["kv-heads"]
        k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
        score = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(d)
        t = torch.arange(T)
        seen = (t[None, None, :] <= t[None, :, None]) & (t[None, None, :] >= first[:, :, None])
        p = torch.softmax(score.masked_fill(~seen[:, None], -math.inf), -1)
        out = torch.einsum("bhts,bshd->bthd", p, v).reshape(B, T, D)
        return F.linear(out, self.p[name + "o_proj.weight"])

    def swiglu(self, x, name):
        gate, up, down = (self.p[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def balance(self, choice, probability):
        """E sum_i f_i P_i over each scope's tokens: all of them, or a sequence's."""
        s = self.shape
        scope = s["context"] if s["aux"] == "sequence" else len(choice)
        total = 0
        for at in range(0, len(choice), scope):
            chosen = choice[at:at + scope]
            fraction = torch.bincount(chosen.flatten(), minlength=s["experts"])
            fraction = fraction.to(probability.dtype) / chosen.numel()
            total = total + s["experts"] * (fraction * probability[at:at + scope]).sum()
        return total

    def keep(self, choice, gate):
        """False where an expert is over its capacity: lowest gates or last tokens go first."""
        s, kept = self.shape, torch.ones_like(choice, dtype=torch.bool)
        if not s["capacity-factor"]:
            return kept
        capacity = math.ceil(choice.numel() / s["experts"] * s["capacity-factor"])
        for e in range(s["experts"]):
            index = torch.where(choice.flatten() == e)[0]
            if s["drop"] == "probs":
                index = index[torch.argsort(-gate.detach().flatten()[index], stable=True)]
            kept.view(-1)[index[capacity:]] = False
        return kept

    def experts(self, x, layer):
        """Output and the sum over tokens of the router's losses."""
        s, name = self.shape, f"model.layers.{layer}.mlp"
        logit = F.linear(x, self.p[name + ".gate.weight"])
        score = torch.softmax(logit, -1) if s["router"] == "softmax" else torch.sigmoid(logit)
        choice = torch.topk(score.detach() + self.bias[layer], s["topk"])[1]
        self.count[layer] = torch.bincount(choice.flatten(), minlength=s["experts"])
        gate = score.gather(1, choice)
        gate = gate / gate.sum(-1, keepdim=True)
        kept = self.keep(choice, gate)
        balance = 0.01 * self.balance(choice, score / score.sum(-1, keepdim=True))
        z = 0.001 * (torch.logsumexp(logit, -1) ** 2).sum()
        out = torch.zeros_like(x)
        for e in range(s["experts"]):
            token, k = torch.where((choice == e) & kept)
            if len(token):
                y = self.swiglu(x[token], f"{name}.experts.{e}")
                out = out.index_add(0, token, y * gate[token, k][:, None])
        if s["shared-width"]:
            out = out + self.swiglu(x, name + ".shared_expert")
        return out, balance + z

    def update_bias(self):
        """Loss-free balance, after a step: towards experts with less than the mean."""
        mean = self.count.mean(-1, keepdim=True)
        self.bias += self.shape["bias-rate"] * torch.sign(mean - self.count)

    def losses(self, token, target, first):
        """Mean cross-entropy of the counted tokens, router losses per token."""
        x = self.p["model.embed_tokens.weight"][token]
        B, T, D = x.shape
        router = 0
        for layer in range(self.shape["layers"]):
            name = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, name + "input_layernorm.weight"), layer, first)
            y = self.norm(x, name + "post_attention_layernorm.weight").view(B * T, D)
            if layer < self.shape["dense-layers"]:
                y = self.swiglu(y, name + "mlp")
            else:
                y, own = self.experts(y, layer)
                router = router + own
            x = x + y.view(B, T, D)
        head = self.p.get("lm_head.weight", self.p["model.embed_tokens.weight"])
        logit = F.linear(self.norm(x, "model.norm.weight"), head).view(B * T, -1)
        return F.cross_entropy(logit, target.flatten(), ignore_index=-1), router / (B * T)

    def gradients(self, batch):
        loss, router = self.losses(*batch)
        for value in self.p.values():  # an expert without tokens has a gradient too: zero
            value.grad = torch.zeros_like(value)
        (loss + router).backward()
        return loss.item(), {name: value.grad for name, value in self.p.items()}


def train_twin(twin, text, held_out, options):
    """AdamW, warm-up and cosine, clipping at norm 1; held-out loss every so many steps."""
    windows = Windows(text, options["context"], options["seed"])
    valid = Windows(held_out, options["context"], 0)
    B, steps, warmup = options["global-batch"], options["steps"], options["warmup-steps"]
    plain = [p for name, p in twin.p.items() if "norm" in name]
    decayed = [p for name, p in twin.p.items() if "norm" not in name]
    adam = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                              {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.95), eps=1e-8)
    train_loss, valid_loss = [], []
    for step in range(steps):
        rate, least = options["rate"], options["min-rate"]
        if step < warmup:
            rate *= (step + 1) / warmup
        else:
            done = (step - warmup) / (steps - warmup)
            rate = least + (rate - least) * 0.5 * (1 + math.cos(math.pi * done))
        loss, _ = twin.gradients(windows.batch(step * B, B))
        torch.nn.utils.clip_grad_norm_(list(twin.p.values()), 1.0)
        for group in adam.param_groups:
            group["lr"] = rate
        twin.update_bias()
        adam.step()
        train_loss.append(loss)
        if (step + 1) % options["validate-every"] == 0:
            total = count = 0
            with torch.no_grad():
                for i in range(0, options["validate-sequences"], B):
                    batch = valid.batch(i, B)
                    counted = (batch[1] >= 0).sum().item()
                    total += twin.losses(*batch)[0].item() * counted
                    count += counted
            valid_loss.append(total / count)
    return train_loss, valid_loss


def run_lplb(lplb, options, *more, precision="f32"):
    """One rank of lplb train; the lines of its log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        words = [str(lplb), "train", "--precision", precision, "--log", str(log), "--json"]
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        subprocess.run(words + list(more), check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in log.read_text().splitlines()]


def initial_weights(lplb, options, folder, precision="f32"):
    """Weights before any step and the gradients of the first: after one step at no rate to speak
    of, the weights are what they were and the first moment is a tenth of the gradient."""
    first = dict(options, steps=1, rate=1e-30)
    first.update({"min-rate": 0, "warmup-steps": 0, "clip": 0, "checkpoint": folder,
                  "checkpoint-every": 1})
    log = run_lplb(lplb, first, precision=precision)
    tensors = load_checkpoint(folder)
    gradients = {name[len("optimizer.m1."):]: value / 0.1 for name, value in tensors.items()
                 if name.startswith("optimizer.m1.")}
    return tensors, gradients, log[0]["loss"]


def compare_curves(lplb, options, precision="f32"):
    """(lplb, twin) losses of every step, and held-out ones."""
    with tempfile.TemporaryDirectory() as folder:
        weights, _, _ = initial_weights(lplb, options, folder, precision)
    log = run_lplb(lplb, options, precision=precision)
    text, held_out = split_text(options["text"], options["held-out"])
    theirs, valid = train_twin(Twin(weights, options), text, held_out, options)
    ours = [line["loss"] for line in log]
    ours_valid = [line["validation_loss"] for line in log if line["validation_loss"] is not None]
    return ours, theirs, ours_valid, valid


OPTIONS = {"layers": 2, "width": 64, "heads": 4, "kv-heads": 2, "context": 64, "experts": 8,
           "topk": 2, "expert-width": 64, "shared-width": 0, "dense-layers": 0, "dense-width": 96,
           "router": "softmax", "aux": "global", "capacity-factor": 0, "drop": "probs",
           "bias-rate": 0, "global-batch": 8, "micro-batch": 8, "steps": 60,
           "warmup-steps": 10, "rate": 3e-3, "min-rate": 3e-4, "seed": 3, "held-out": 0.1,
           "validate-every": 20, "validate-sequences": 32}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lplb")
    parser.add_argument("--text", required=True)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    chosen = dict(OPTIONS, text=arguments.text, steps=arguments.steps)
    ours, theirs, ours_valid, valid = compare_curves(arguments.lplb, chosen)
    print("step   held-out loss: lplb train   PyTorch   difference")
    for i, (a, b) in enumerate(zip(ours_valid, valid)):
        print(f"{(i + 1) * chosen['validate-every']:4} {a:27.5f} {b:9.5f} {abs(a - b):12.2e}")
    print(f"largest difference of a step's training loss: "
          f"{max(abs(a - b) / b for a, b in zip(ours, theirs)):.2e} relative")
