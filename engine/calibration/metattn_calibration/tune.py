"""Stage 4: controllers and feature maps together, end to end through the frozen model.

The student routes hard (Gumbel noise; straight-through gradients of the posterior mean), and its loss is KL(teacher ||
student) plus price * mean m_full plus a small KL to the cost prior. The price follows the achieved share of full rows by
dual ascent, one price a length: with a common one long texts get the larger share.
"""

import torch
import torch.nn.functional as F

from . import dirichlet, prompts
from .attention import attend_causal, attend_chosen
from .model import HEAD_ROWS
from .retrofit import rows_of
from .train_controllers import COSTS
from .train_maps import schedule

LENGTHS = (2048, 4096, 2048, 4096, 2048, 8192)
NOISE = 0.35               # size of the Gumbel noise on log m
PRIOR_WEIGHT = 5e-4
PRICE_START = 0.06         # about where long runs end
PRICE_STEP, PRICE_HOLD = 0.05, 12  # of dual ascent; while controllers warm up their shares say little of what a price does
LONG_RUN = 216             # steps that PRICE_STEP is for
RATE, DECAY, CLIP = 1e-3, 1e-2, 0.2
KEEP_ALL = 2048            # longer texts compute layers again in the backward pass: keeping all of 4,096 takes 13 GB


class Student:
    """Routed attention with gradients; per layer it keeps the mean posterior of full, the hard share and the prior KL."""

    def __init__(self, retrofit, offsets, seed):
        self.retrofit, self.offsets, self.seed, self.terms, self.exact = retrofit, offsets, seed, {}, {}
        self.prior = dirichlet.cost_prior(COSTS)

    def __call__(self, layer, x, q, k, v):
        first, group = self.retrofit.geometry.first, q.shape[0] // k.shape[0]
        rows = rows_of(self.retrofit, layer, q, k, v)
        b = self.retrofit.controllers[layer](x[first:].detach(), rows.scalars.detach())
        log_mean = b.log() + self.offsets[layer][:, None]
        mean = log_mean.softmax(-1)
        generator = torch.Generator().manual_seed(self.seed + layer)
        uniform = torch.rand(mean.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        hard = F.one_hot((log_mean.detach() - NOISE * (-uniform.log()).log()).argmax(-1), 3).to(mean.dtype)
        kl, soft = dirichlet.kl(b, self.prior.expand_as(b)).mean(), mean[..., 0].mean()
        if layer not in self.terms:  # when a layer is computed again, the first terms are those of the graph
            self.terms[layer] = (soft, hard[..., 0].mean().item(), kl, hard[..., 1].mean().item())
        full = self._full(layer, q, k, v, hard[..., 0])
        gate = (hard + mean - mean.detach()).repeat_interleave(group, 0)
        near = rows.o_near[:, first:].float()
        far = near + gate[..., :1] * (full[:, first:].float() - near) + gate[..., 1:2] * (rows.o_linear - near)
        return torch.cat([rows.o_near[:, :first].float(), far], 1)

    def _full(self, layer, q, k, v, hard):
        """Full attention, computed once even where its layer is computed again; only rows that read it lead back through it."""
        def known():
            if layer not in self.exact:
                with torch.no_grad():
                    self.exact[layer] = attend_causal(q, k, v)
            return self.exact[layer]

        chosen = F.pad(hard > 0, (self.retrofit.geometry.first, 0))
        return attend_chosen(q, k, v, chosen, known)

    def sums(self):
        terms = [self.terms[layer] for layer in sorted(self.terms)]
        soft, kl = (torch.stack([t[i] for t in terms]).mean() for i in (0, 2))
        return soft, kl, sum(t[1] for t in terms) / len(terms), sum(t[3] for t in terms) / len(terms)


@torch.no_grad()
def divergence(model, teacher, student, weights, first=0):
    """-> KL(teacher || student) with normalised row weights, and its gradient by the student's hidden states.

    Rows before `first` are the same in both: their logits are not computed.
    """
    weights, gradient, total = weights / weights.sum(), torch.zeros_like(student), 0.0
    for begin in range(first, len(teacher), HEAD_ROWS):
        rows = slice(begin, begin + HEAD_ROWS)
        log_t, log_s = (model.logits(h[rows]).log_softmax(-1) for h in (teacher, student))
        t, w = log_t.exp(), weights[rows]
        total += ((t * (log_t - log_s)).sum(-1) * w).sum().item()
        gradient[rows] = F.linear(((log_s.exp() - t) * w[:, None]).to(model.dtype), model.head.T).float()
    return total, gradient


def optimiser_of(retrofit):
    maps, controllers = ([p for m in modules for p in m.parameters()] for modules in (retrofit.maps, retrofit.controllers))
    return torch.optim.AdamW([{"params": maps, "weight_decay": 0.0}, {"params": controllers, "weight_decay": DECAY}],
                             lr=RATE, betas=(0.9, 0.98))


def price_step(step, steps):
    """What a price moves by a unit of share too much. Short runs take larger steps, or they end far from the wanted share."""
    return 0.0 if step < min(PRICE_HOLD, steps // 4) else PRICE_STEP * min(max(1.0, LONG_RUN / steps), 2.0)


def train(job, offsets, steps, share, lengths=LENGTHS):
    """offsets [layers, Hkv, 3]: added to log m (what makes argmax meet the share before tuning). -> the last price, a mean."""
    stage, run, model, retrofit = "tune", job.run, job.model, job.retrofit
    parameters = retrofit.parameters()
    optimiser = optimiser_of(retrofit)
    state = run.load(stage)
    begin, prices = 0, dict.fromkeys(lengths, run.settings.get("price", PRICE_START))
    if state:
        begin, prices = state["step"], state["prices"]
        retrofit.load_state(state["retrofit"])
        optimiser.load_state_dict(state["optimiser"])
    for step in range(begin, steps):
        length = lengths[step % len(lengths)]
        kind, prompt = prompts.mixed(job.tokenizer, job.found, length, run.rng(stage, step))
        with torch.no_grad():
            teacher = model.dense(prompt.ids)
        student = Student(retrofit, offsets, run.rng(stage, step, "noise").randrange(1 << 40))
        hidden = model.hidden(prompt.ids, student, save_memory=length > KEEP_ALL)
        loss, gradient = divergence(model, teacher, hidden.detach(), prompt.weights, retrofit.geometry.first)
        soft, prior, hard, linear = student.sums()
        optimiser.zero_grad()
        price = prices[length]
        torch.autograd.backward([hidden, price * soft + PRIOR_WEIGHT * prior], [gradient, None])
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP).item()
        for group in optimiser.param_groups:
            group["lr"] = RATE * schedule(step, steps, 8, floor=0.05)
        optimiser.step()
        prices[length] = max(0.0, price + price_step(step, steps) * (hard - share))
        run.log(stage, step=step, kind=kind, length=length, kl=loss, full=hard, linear=linear, price=price, norm=norm)
        run.save(stage, step + 1, steps, {"retrofit": retrofit.state(), "optimiser": optimiser.state_dict(), "prices": prices})
        run.progress(stage, step + 1, steps, f"{kind} of {length}: KL {loss:.4f}, full {hard:.3f}, price {price:.3f}",
                     share=length * len(lengths) / sum(lengths) / steps)
    return sum(prices.values()) / len(prices)
