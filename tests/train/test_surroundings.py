import logging
import signal
import warnings

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger
from train_toys import Critic, Toy, batches, changed, citeseq_model, fit, weights

LIGHTNING = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "lightning")
OUTDATED = (DeprecationWarning, PendingDeprecationWarning)

# --- what the user sees -----------------------------------------------------------------------------


def test_the_bar_names_stage_epoch_and_terms(capfd):
    fit(Toy(), epochs={"first": 2, "second": 3}, progress_bar=True, early_stopping=False)
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.replace("\r", "\n").splitlines()
    first, second = ([line for line in lines if line.startswith(f"{name} (")][-1] for name in ("first", "second"))
    assert first.startswith("first (1/2): 100%")
    assert "2/2" in first
    assert second.startswith("second (2/2): 100%")
    assert "3/3" in second
    for line in (first, second):
        for term in ("train_loss", "fit_train", "size_train", "validation_loss", "fit_validation", "size_validation"):
            assert f"{term}=" in line
        assert "epoch" in line
        assert "lr=" not in line


@pytest.mark.parametrize("option", [{"progress_bar": False}, {"enable_progress_bar": False}, {}])
def test_a_model_shows_progress_unless_told_not_to(capfd, option):
    model = citeseq_model("CLIP")
    capfd.readouterr()
    model.train(1, seed=0, accelerator="cpu", **option)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("shared (1/1)" in err) == (not option)
    assert option == {} or err == ""


@pytest.fixture
def chatter():
    """What Lightning's loggers let through, wherever they would print it, and all warnings."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler, loggers = Keep(), [logging.getLogger(name) for name in LIGHTNING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)  # as in a user's session
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: records + [str(w.message) for w in caught if not issubclass(w.category, OUTDATED)]
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("n_validation", [20, 0])
def test_lightning_says_nothing(chatter, tmp_path, n_validation):
    fit(Critic(), batches(n_validation=n_validation), checkpoint_dir=tmp_path)
    fit(Critic(), batches(n_validation=n_validation), checkpoint_dir=tmp_path, resume=True)
    assert chatter() == []


def test_lightning_says_nothing_of_a_resumed_or_stopped_run(chatter, tmp_path):
    with pytest.raises(KeyError):
        fit(Toy(), checkpoint_dir=tmp_path, trainer_options={"callbacks": Raise("on_train_epoch_start", KeyError)})
    fit(Toy(), checkpoint_dir=tmp_path, resume=True)
    fit(Toy(), epochs=5, patience=1, min_delta=1e9)
    assert chatter() == []


def test_the_bar_of_a_resumed_stage_starts_where_it_was(tmp_path, capfd):
    options = {"epochs": 4, "checkpoint_dir": tmp_path}
    with pytest.raises(KeyError):
        fit(Toy(), trainer_options={"callbacks": RaiseIn("second", 2)}, **options)
    capfd.readouterr()
    fit(Toy(), resume=True, progress_bar=True, **options)
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line]
    assert all(line.startswith("second (2/2)") for line in lines)
    assert "  50%" in lines[0]
    assert " 2/4 " in lines[0]
    assert " 4/4 " in lines[-1]


def test_other_warnings_and_levels_are_left_alone(chatter):
    levels = [logging.getLogger(name).level for name in LIGHTNING]

    class Warning_(Toy):
        def on_loss(self, batch, stage):
            warnings.warn("the user's own", UserWarning, stacklevel=1)

    fit(Warning_(), epochs=1)
    assert set(chatter()) == {"the user's own"}
    assert [logging.getLogger(name).level for name in LIGHTNING] == levels


def test_nothing_is_written_and_nothing_global_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_num_threads()
    fit(Toy())
    assert list(tmp_path.iterdir()) == []
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_num_threads()) == flags


# --- what the user brings ---------------------------------------------------------------------------


class Raise(Callback):
    def __init__(self, hook, error):
        def act(*args):
            raise error

        setattr(self, hook, act)


class RaiseIn(Callback):
    def __init__(self, stage, epoch):
        self.stage, self.epoch = stage, epoch

    def on_train_epoch_start(self, trainer, plan):
        if (plan.stage.name, trainer.current_epoch) == (self.stage, self.epoch):
            raise KeyError


class Count(Callback):
    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, plan):
        self.epochs.append((plan.stage.name, trainer.current_epoch))


def test_the_users_callbacks_run_and_their_list_stays_theirs():
    count = Count()
    callbacks, options = [count], {}
    options["callbacks"] = callbacks
    fit(Toy(), epochs=2, trainer_options=options)
    assert callbacks == [count]
    assert options == {"callbacks": callbacks}
    assert count.epochs == [("first", 0), ("first", 1), ("second", 0), ("second", 1)]


def test_one_callback_needs_no_list():
    count = Count()
    fit(Toy(), epochs=1, trainer_options={"callbacks": count})
    assert len(count.epochs) == 2


def test_the_users_checkpoint_under_any_name(tmp_path):
    class Keeper(Checkpoint):
        def on_train_epoch_end(self, trainer, plan):
            trainer.save_checkpoint(tmp_path / f"{plan.stage.name}.ckpt")

    fit(Toy(), epochs=1, trainer_options={"callbacks": [Keeper()]})
    assert {path.name for path in tmp_path.iterdir()} == {"first.ckpt", "second.ckpt"}


def test_the_users_logger(tmp_path, chatter):
    logger = CSVLogger(tmp_path)
    history = fit(Toy(), epochs=3, early_stopping=False, trainer_options={"logger": logger})
    assert chatter() == []
    table = pd.read_csv(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    for name in ("train_loss", "fit_train", "validation_loss", "size_validation"):
        logged = table[name].dropna().tolist()
        assert logged == pytest.approx([*history[f"first/{name}"][name], *history[f"second/{name}"][name]], rel=1e-5)
        assert len(logged) == 6
    assert len(history) == 14


def test_logging_changes_no_numbers(tmp_path):
    logged, plain = Toy(), Toy()
    fit(logged, trainer_options={"logger": CSVLogger(tmp_path)}, progress_bar=True)
    fit(plain)
    assert changed(weights(logged), weights(plain)) == []


# --- what goes wrong --------------------------------------------------------------------------------


def python_handler(signum, frame):
    raise KeyboardInterrupt


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_start", "on_train_epoch_end", "setup"])
def test_ctrl_c_is_a_keyboard_interrupt(hook, capfd):
    class CtrlC(Callback):
        def __init__(self):
            setattr(self, hook, lambda *args, **kwargs: signal.raise_signal(signal.SIGINT))

    before = signal.signal(signal.SIGINT, python_handler)
    state = torch.get_rng_state()
    module = Toy()
    try:
        with pytest.raises(KeyboardInterrupt) as error:
            fit(module, progress_bar=True, trainer_options={"callbacks": [CtrlC()]})
        assert signal.getsignal(signal.SIGINT) is python_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert error.value.__cause__ is None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert "Detected KeyboardInterrupt" not in capfd.readouterr().err
    fit(module, epochs=1)  # and the module can be trained again


def test_other_exits_are_left_alone():
    with pytest.raises(SystemExit, match="3"):
        fit(Toy(), trainer_options={"callbacks": [Raise("on_train_batch_end", SystemExit(3))]})
