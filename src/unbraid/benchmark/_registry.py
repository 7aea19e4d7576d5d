"""The experiments that ``unbraid bench`` knows: one entry each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from unbraid._messages import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment of the command line.

    Attributes
    ----------
    name
        What users type.
    module
        Module whose ``main`` takes a list of options; also run by ``python -m``.
    description
        What it answers, in a line.
    source
        Figure or table that it goes with; ours where there is none.
    quick
        Options of the quick mode, the default; empty for the module's own defaults.
    full
        Options of the size that was published; empty for the module's own defaults.
    needs
        What the user must bring, as an option; empty if nothing.
    minutes
        Measured time of the quick mode on one thread; None where it was not measured.
    """

    name: str
    module: str
    description: str
    source: str = "ours"
    quick: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    needs: str = ""
    minutes: float | None = None

    def main(self) -> Callable[[Sequence[str]], None]:
        """What runs it; imports the module."""
        return import_module(self.module).main

    def arguments(self, options: Sequence[str] = (), *, full: bool = False) -> list[str]:
        """Options of the mode, then the user's, which win.

        Parameters
        ----------
        options
            The user's.
        full
            The published size instead of the quick one.
        """
        return [*(self.full if full else self.quick), *options]


def _words(options: str) -> tuple[str, ...]:
    return tuple(options.split())


EXPERIMENTS = (
    Experiment(
        name="disentangled-ssl",
        module="unbraid.benchmark.disentangled_ssl",
        description="DisentangledSSL's simulation: accuracy of the codes by beta and lambda, beside JointOpt and FOCAL",
        source="Wang et al. 2025, figures 4, 7 and 8",
        quick=_words(
            "--n-obs 10000 --seeds 1 --betas 0.1 10 1000 --lambdas 0 0.1 --weights 0.1 --rival-lambdas 0 0.1 "
            "--epochs 25 15"
        ),
        full=_words(
            "--n-obs 90000 --seeds 3 --betas 0 0.001 0.01 0.1 0.5 1 5 10 50 100 300 500 1000 "
            "--lambdas 0 0.001 0.01 0.1 1 10 100 --weights 0.01 0.1 1 10 100 1000 "
            "--rival-lambdas 0 0.001 0.01 0.1 1 10 100 --epochs 50 30"
        ),
    ),
    Experiment(
        name="disentangled-ssl-mixed",
        module="unbraid.benchmark.disentangled_ssl_mixed",
        description="The same where some shared features are unmixed: accuracy of the shared code, and what it attends to",
        source="Wang et al. 2025, figure 9",
        quick=_words("--n-obs 20000 --seeds 1 --betas 0.001 10 1000"),
        full=_words("--n-obs 90000 --seeds 3 --betas 0 0.001 0.01 0.1 0.5 1 5 10 50 100 300 500 1000"),
    ),
    Experiment(
        name="indiseek",
        module="unbraid.benchmark.indiseek",
        description="IndiSeek's simulations: which coordinates a specific code holds, and what of the shared code",
        source="IndiSeek, figures 1-2 and 6-17",
        full=_words("--full"),
    ),
    Experiment(
        name="citeseq-ranks",
        module="unbraid.benchmark.citeseq_ranks",
        description="Whether specific codes rank cell types by modality as weighted nearest neighbours do; clusters",
        source="IndiSeek, figures 4 and 5, appendix A.3",
        quick=_words("--seeds 1 --epochs 20 --learning-rate 1e-3"),
        full=_words("--seeds 10 --epochs 2000 --learning-rate 1e-4 --lambdas 0.001 0.01 0.1 1 10 100 1000"),
    ),
    Experiment(
        name="contrastive-table",
        module="unbraid.benchmark.contrastive_table",
        description="All contrastive methods beside the linear split: what their codes hold, leak and coverage",
        quick=_words("--n-obs 5000 --steps 300 --seeds 1 --card-obs 1000"),
        full=_words("--seeds 5"),
    ),
    Experiment(
        name="flagship",
        module="unbraid.benchmark.flagship",
        description="Unbraid beside its rivals where the truth is not linear, on cells, and on a drug screen",
        quick=_words("--n-obs 3000 --steps 300 --seeds 1"),
        full=_words("--seeds 5"),
    ),
    Experiment(
        name="drug-screen",
        module="unbraid.benchmark.drug_screen",
        description="Which molecule caused a phenotype: retrieval, reconstruction gain and counterfactuals by compound",
        source="Wang et al. 2025, tables 2, 3 and 5",
        quick=_words("--steps 200 --seeds 1 --methods LinearSplit CLIP DisentangledSSL"),
        full=_words("--full --steps 100000 --seeds 3"),
    ),
    Experiment(
        name="generative",
        module="unbraid.benchmark.generative",
        description="Generative models where the shared signal is weak: what their latents hold, what they generate",
        source="after Zhang et al. 2026, tables 1 and 2",
        quick=_words("--n-obs 3000 --steps 300 --seeds 1"),
        full=_words("--seeds 5"),
    ),
    Experiment(
        name="generative-images",
        module="unbraid.benchmark.generative_images",
        description="The same on small images of PolyMNIST-Quadrant",
        source="Zhang et al. 2026, tables 1 and 2",
        quick=_words("--n-train 4000 --n-test 500 --steps 200 --seeds 1"),
        full=_words("--seeds 3"),
        needs="--mnist",
    ),
    Experiment(
        name="generative-missing",
        module="unbraid.benchmark.generative_missing",
        description="Whether cells without proteins help generative models, beside training on complete cells",
        quick=_words("--n-obs 2000 --steps 200 --shares 0 0.4 --seeds 1"),
        full=_words("--seeds 3"),
    ),
    Experiment(
        name="tcga",
        module="unbraid.benchmark.tcga",
        description="What codes of tumours tell of mortality, or of another label",
        source="Zhang et al. 2026, tables 4 and 7",
        quick=_words("--steps 300 --seeds 1"),
        full=_words("--seeds 5"),
        needs="--data",
    ),
    Experiment(
        name="multivae-speed",
        module="unbraid.benchmark.multivae_speed",
        description="Seconds per epoch of the generative models beside the package multivae, where that is installed",
        quick=_words("--epochs 3 --repeats 1"),
    ),
    Experiment(
        name="imputation",
        module="unbraid.benchmark.imputation",
        description="Proteins imputed from RNA, with intervals, beside totalVI",
        quick=_words("--steps 300 --seeds 1"),
        full=_words("--seeds 5"),
        needs="--data",
    ),
    Experiment(
        name="pairs",
        module="unbraid.benchmark.pairs",
        description="Clusters that pairs of cells ask for: DL2, CMVAE and constrained clustering on two shared factors",
        source="DL2, table 1 and figures 5 to 8, on a tabular simulation",
        quick=_words("--n-obs 3000 --steps 300 --seeds 1"),
        full=_words("--seeds 5 --fraction 0.1 1"),
    ),
    Experiment(
        name="pairs-images",
        module="unbraid.benchmark.pairs_images",
        description="The same on DDMNISTMM, small",
        source="DL2, tables 1 and 2",
        quick=_words("--n-train 4000 --n-test 500 --steps 200 --seeds 1"),
        full=_words("--seeds 3"),
        needs="--mnist",
    ),
    Experiment(
        name="pairs-cells",
        module="unbraid.benchmark.pairs_cells",
        description="Cell types from a few annotated cells, beside a classifier and leiden",
        quick=_words("--shares 0.05 --steps 300 --seeds 1"),
        full=_words("--seeds 5"),
        needs="--data",
    ),
    Experiment(
        name="pairs-asked",
        module="unbraid.benchmark.pairs_asked",
        description="Pairs that DL2 suggests to ask for, beside as many at random",
        quick=_words("--n-obs 1000 --steps 100 --rounds 1 --seeds 1"),
        full=_words("--seeds 5"),
    ),
    Experiment(
        name="linear-gaussian",
        module="unbraid.benchmark.linear_gaussian",
        description="What a split of linear-Gaussian data can reach, in closed form",
        quick=_words("--seeds 1"),
        full=_words("--seeds 5"),
    ),
    Experiment(
        name="batch-negatives",
        module="unbraid.benchmark.batch_negatives",
        description="Whether negatives of a cell's own batch keep batch out of the shared code",
        quick=_words("--seeds 1 --n-obs 2000"),
        full=_words("--seeds 5"),
    ),
    Experiment(
        name="missing-modality",
        module="unbraid.benchmark.missing_modality",
        description="What is lost when cells lack a modality",
        quick=_words("--seeds 1"),
        full=_words("--seeds 3"),
        needs="--data",
    ),
    Experiment(
        name="cards",
        module="unbraid.benchmark.cards",
        description="Scorecards of several tools' embeddings of one CITE-seq data set",
        quick=_words("--max-obs 2000 --embeddings LinearSplit DisentangledSSL"),
        full=_words("--max-obs 2000 4000"),
        needs="--data",
    ),
    Experiment(
        name="scorecard",
        module="unbraid.benchmark.scorecard",
        description="How often a scorecard is wrong, on data whose answers are known",
        quick=_words("--repeats 4 --leak-repeats 2"),
    ),
    Experiment(
        name="mutual-information",
        module="unbraid.benchmark.mutual_information",
        description="Estimates of mutual information where it is known",
        quick=_words("--repeats 2 --neural-repeats 0"),
        full=_words("--repeats 10 --neural-repeats 2"),
    ),
    Experiment(
        name="feature-verdict",
        module="unbraid.benchmark.feature_verdict",
        description="False discovery rate and power of the verdicts on features",
        quick=_words("--seeds 2"),
        full=_words("--seeds 20"),
    ),
    Experiment(
        name="molecules",
        module="unbraid.benchmark.molecules",
        description="Molecules per second from SMILES to features",
        quick=_words("--n 2000"),
    ),
    Experiment(
        name="retrieval-speed",
        module="unbraid.benchmark.retrieval_speed",
        description="Seconds and memory of a search among a million molecules, exact and approximate",
        quick=_words("--n 100000 --queries 200"),
    ),
    Experiment(
        name="throughput",
        module="unbraid.benchmark.throughput",
        description="How much of a bare PyTorch loop's speed training keeps",
        quick=_words("--n-obs 5000 --epochs 1 --repeats 3 --batch-sizes 512"),
    ),
    Experiment(
        name="training-speed",
        module="unbraid.benchmark.training_speed",
        description="Cells per second of training of all contrastive methods; DisentangledSSL against its released recipe",
        quick=_words("--n-obs 4000 --recipe-obs 4000 --repeats 1"),
        full=_words("--repeats 5"),
    ),
)


def find(name: str) -> Experiment:
    """The experiment of that name.

    Parameters
    ----------
    name
        As listed; underscores count as hyphens.

    Raises
    ------
    ValueError
        If there is none; the message says what there is.
    """
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    key = name.replace("_", "-").lower()
    if key not in by_name:
        raise ValueError(f"There is no experiment {name!r}. {suggest(key, by_name)}")
    return by_name[key]
