"""Small modules and data for the tests of training; scripts in subprocesses import them too."""

import numpy as np
import pandas as pd
import torch
from scvi.module.base import LossOutput
from torch import nn
from torch.utils.data import Dataset

import unbraid as ub
from unbraid.data import MultimodalDataModule
from unbraid.module import InnerLoop, Latents, SplitModule, Stage, total_loss
from unbraid.nn import ModalitySpec
from unbraid.train import RunOptions, run_stages

torch.set_num_threads(1)

N_A, N_B = 4, 3


class Cells(Dataset):
    """Paired rows of two modalities, in the shape of a MultimodalDataset."""

    def __init__(self, a, b):
        self.a, self.b = torch.as_tensor(a, dtype=torch.float32), torch.as_tensor(b, dtype=torch.float32)

    def __len__(self):
        return len(self.a)

    def __getitem__(self, indices):
        index = torch.as_tensor(indices)
        present = torch.ones(len(index), dtype=torch.bool)
        return {"x": {"a": self.a[index], "b": self.b[index]}, "mask": {"a": present, "b": present}, "index": index}


def cells(n=60, noise=0.5, seed=0):
    """B is a linear function of a, with noise."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, N_A))
    return Cells(a, a @ rng.normal(size=(N_A, N_B)) + noise * rng.normal(size=(n, N_B)))


def batches(dataset=None, n_train=40, n_validation=None, batch_size=16, seed=0, **kwargs):
    """The first cells to train, the next ones to validate."""
    dataset = cells() if dataset is None else dataset
    n_validation = len(dataset) - n_train if n_validation is None else n_validation
    order = np.arange(len(dataset))
    parts = {"train": order[:n_train], "validation": order[n_train : n_train + n_validation], "test": order[:0]}
    return MultimodalDataModule(dataset, parts, batch_size, seed=seed, **kwargs)


def network(n_in, n_out, dropout=0.3):
    # no bias before batch norm: its gradient is rounding error, which Adam blows up
    first = nn.Linear(n_in, 8, bias=False)
    return nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, n_out))


class Toy(SplitModule):
    """Stage "first" fits b by ``first(a)``, stage "second" fits what is left by ``second(a) + offset``."""

    def __init__(self, seed=0, dropout=0.3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(
                ModalitySpec(name, n, "normal", "identity", np.zeros(n), np.ones(n))
                for name, n in {"a": N_A, "b": N_B}.items()
            )
            self.first = network(N_A, N_B, dropout)
            self.second = network(N_A, N_B, dropout)
            self.offset = nn.Parameter(torch.zeros(N_B))

    @property
    def stages(self):
        return [Stage("first", ("first",), lr=1e-2), Stage("second", ("second", "offset"), lr=1e-2)]

    def encode(self, batch, *, give_mean=True):
        return Latents(batch["mask"], {"a": self.first(batch["x"]["a"])})

    def loss(self, batch, stage):
        self.on_loss(batch, stage)
        a, b = batch["x"]["a"], batch["x"]["b"]
        prediction = self.first(a)
        if stage == "second":
            prediction = prediction.detach() + self.second(a) + self.offset
        terms = {
            "fit": (1.0, lambda: (prediction - b).square().mean()),
            "size": (0.1, lambda: prediction.square().mean()),
        }
        return total_loss(terms, len(a))

    def on_loss(self, batch, stage):
        """For tests to look in."""


class Critic(Toy):
    """Beside the fit, an auxiliary regression of b on a that an inner loop fits."""

    inner = InnerLoop(("critic",), n_steps=3, lr=1e-2)

    def __init__(self, seed=0, dropout=0.0):
        super().__init__(seed, dropout)
        self.critic = nn.Linear(N_A, N_B)
        nn.init.zeros_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)

    @property
    def stages(self):
        return [Stage("first", ("first",), lr=1e-2, inner=self.inner)]

    def loss(self, batch, stage):
        self.on_loss(batch, stage)
        prediction = self.first(batch["x"]["a"])
        terms = {
            "fit": (1.0, lambda: (prediction - batch["x"]["b"]).square().mean()),
            "agree": (0.5, lambda: (prediction - self.critic(batch["x"]["a"])).square().mean()),
        }
        return total_loss(terms, len(prediction))

    def inner_loss(self, batch, stage):
        self.on_inner_loss(batch, stage)
        a = batch["x"]["a"]
        # the outer network takes part, and must not learn from it
        return (self.critic(a) - batch["x"]["b"]).square().mean() + self.first(a).square().mean()

    def on_inner_loss(self, batch, stage):
        """For tests to look in."""


class Scripted(Toy):
    """The validation loss of stage "first" follows a script; the weights at every validation are kept."""

    def __init__(self, script, seed=0):
        super().__init__(seed)
        self.script, self.at_validation = list(script), []

    def loss(self, batch, stage):
        output = super().loss(batch, stage)
        if self.first.training or self.second.training:
            return output
        self.at_validation.append(weights(self))
        value = self.script[len(self.at_validation) - 1]
        return LossOutput(loss=torch.tensor(float(value)), n_obs_minibatch=len(batch["index"]))


def citeseq_model(name, *, init=0, mdata=None, **options):
    """A small model of CITE-seq and ATAC, in which many cells lack a modality."""
    if mdata is None:
        missing = {"rna": 0.1, "prot": 0.3, "atac": 0.8}
        mdata = ub.data.simulate.citeseq(n_obs=90, n_genes=12, n_proteins=8, n_peaks=10, missing=missing)
    model_class = getattr(ub.model, name)
    model_class.setup_mudata(mdata, batch_key="batch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init)
        return model_class(mdata, n_shared=4, n_hidden=16, **options)


def fit(module, datamodule=None, *, epochs=3, stages=None, **options):
    """Run the module's stages on the CPU, without a bar."""
    stages = module.stages if stages is None else stages
    epochs = epochs if isinstance(epochs, dict) else {stage.name: epochs for stage in stages}
    options = {"seed": 0, "accelerator": "cpu", "devices": 1, "progress_bar": False, **options}
    return run_stages(module, stages, epochs, batches() if datamodule is None else datamodule, RunOptions(**options))


def weights(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def changed(before, after):
    """Names of the weights that are not bit-equal."""
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


def assert_same_history(one, other):
    assert list(one) == list(other)
    for name in one:
        pd.testing.assert_frame_equal(one[name], other[name], check_exact=True)
