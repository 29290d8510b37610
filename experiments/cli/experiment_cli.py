"""ExperimentCLI: Lightning's CLI with interpolation, shared keys, and one folder per run."""

from __future__ import annotations

import contextlib
import getpass
import glob
import os
import shlex
import shutil
import sys
import time
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from callbacks.checkpoint_io import keep_whole_checkpoints
from callbacks.fit_end import StopAtStep
from callbacks.hparams import HParams
from callbacks.interruption import Interruption
from callbacks.run_record import RunRecord, fingerprint_of, note_reason
from callbacks.selected_weights import Select, SelectedWeights
from callbacks.training_health import TrainingHealth
from datamodules.unindexed import is_unindexed
from experiments.cli.allow_class import split_allow_class
from experiments.cli.checkpoint_check import (
    LATER_KEYS,
    MACHINE_KEYS,
    check_resume,
    flattened,
    run_of,
    start_checkpoint,
)
from experiments.cli.config_check import check_config_files, check_flag, check_flags
from experiments.cli.config_files import CONFIGS, find_config, with_configs
from experiments.cli.dropped_callbacks import dropped_callbacks
from experiments.cli.earlier_run import made_anew
from experiments.cli.encoder import check_encoder, with_encoder
from experiments.cli.fit_loop import WholeFitLoop
from experiments.cli.help_page import HELP, HELP_ALL, HELP_FLAGS, help_page
from experiments.cli.input_files import find_beside, find_input, place_inputs
from experiments.cli.linked_keys import check_linked
from experiments.cli.messages import USER_ERRORS, innermost, reason_of, without_secrets
from experiments.cli.missing_folders import check_data_root, making_commands
from experiments.cli.next_command import next_line
from experiments.cli.parser_errors import parser_message
from experiments.cli.progress_bar import drop_number_of_epochs
from experiments.cli.run_places import RunKind, check_places
from experiments.cli.settings_sources import ABSENT, SettingsSource, config_files, settings_sources
from experiments.cli.short_options import (
    SHORT_OPTIONS,
    ImpliedSetting,
    implied_settings,
    with_implied,
)
from experiments.cli.trainer_options import check_trainer_options
from experiments.cli.unwritable_defaults import drop_unwritable_defaults
from experiments.runs.claim import ClaimedFolder
from experiments.runs.deciding_settings import deciding_trainer
from experiments.runs.loggers import LogFolders, keep_checkpoints_in, place_loggers
from experiments.runs.ranked_test import RankedTest
from experiments.runs.saved_backbone import find_backbone
from lightning_modules.backbone_module import BackboneModule
from mmemb.records.file_names import check_plain
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.fingerprints import fingerprint, input_identities
from mmemb.storage.folder_kinds import FolderKind, check_kind
from mmemb.storage.protocols import FolderCallback, having
from mmemb.storage.provenance import git_state
from mmemb.storage.resources import check_disk, check_memory
from mmemb.storage.run_folder import ExperimentFolder, link_name
from mmemb.storage.tensor_files import read_weights
from mmemb.storage.trained_facts import TrainedFacts, inherited_facts

SUBCOMMANDS = ("fit", "validate", "test", "predict")

_STRICT = {"exit_on_error": False, "allow_abbrev": False}
"""No page of usage around an error, and no option by the beginning of its name."""


class ExperimentCLI(LightningCLI):
    """Reads `base.yaml` first, then every `--config`; `RunRecord` is what a run leaves."""

    claimed = ClaimedFolder()
    implied: Sequence[ImpliedSetting] = ()

    def __init__(self, arguments: list[str] | None = None) -> None:
        # Lightning 2.6 calls what jsonargparse 5 will remove; our users cannot act on it.
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        command = shlex.join(["python", "-m", "experiments.run", *(arguments or [])])
        self.command = without_secrets(command)  # it is kept beside what a run writes

        allowed, self.arguments = split_allow_class(arguments or [])
        named = [argument for argument in self.arguments if argument in SUBCOMMANDS]
        if named:  # the other three parsers would take a third of the start
            method = {named[0]: self.subcommands()[named[0]]}
            self.subcommands = lambda: method

        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        # Building and running both happen in this context, so folders loaded late count, too.
        with allowing_classes(allowed):
            super().__init__(
                pl.LightningModule,
                pl.LightningDataModule,
                args=with_base(with_configs(with_encoder(self.arguments), find_config)),
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                parser_kwargs={
                    "parser_mode": "omegaconf+",
                    "exit_on_error": False,
                    **{name: dict(_STRICT) for name in self.subcommands()},
                },
            )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, help="name of the stage: runs and links carry it")
        parser.add_argument("--experiment", type=str, help="folder below `runs`")
        parser.add_argument(
            "--runs",
            type=str,
            default=os.environ.get("MMEMB_RUNS", "runs"),
            help="folder of all runs (default: $MMEMB_RUNS or runs)",
        )

        parser.add_argument(
            "--log_folder",
            type=str,
            default=os.environ.get("MMEMB_LOGS"),
            help="folder of all runs' logs (default: $MMEMB_LOGS, else each run's own folder)",
        )

        # What the YAML files link to several places.
        parser.add_argument("--data_root", type=str, help="prepared data, e.g. data/pocket")
        parser.add_argument(
            "--vlm", type=str, help="folder or hub id of the vision-language model of the recipes"
        )
        parser.add_argument("--server", type=str, help="address of the chat server of the recipes")
        parser.add_argument(
            "--models", type=str, help="folder of small models, as prepare pocket makes it"
        )
        parser.add_argument(
            "--group_size", type=int, help="pairs of one source in a batch of the recipes"
        )

        # Short for long keys (`short_options.py`), which are set before this parser reads anything.
        parser.add_argument("--lr", type=float | None, help="learning rate: model.optimizer.lr")
        parser.add_argument(
            "--batch_size", type=int | None, help="rows of a batch: data.batch_size"
        )
        parser.add_argument(
            "--pretrained",
            type=str | None,
            help="weights of the encoder: model.backbone.pretrained",
        )
        parser.add_argument("--steps", type=int | None, help="optimiser steps: trainer.max_steps")
        parser.add_argument(
            "--devices",
            type=int | str | list[int] | None,
            help="processes or GPUs: trainer.devices",
        )

        parser.add_argument(
            "--select",
            type=Select,
            default="last",
            help="weights that a fit leaves: of its last step, or of its best checkpoint",
        )
        parser.add_argument(
            "--init",
            type=str | None,
            help="run whose weights a fit starts from, with a new optimiser, at step 0",
        )

        # The record of the run, and what is checked before anything is made.
        parser.add_argument("--owner", type=str, default=_user(), help="recorded with the run")
        parser.add_argument(
            "--tags", type=str, nargs="+", default=[], help="words to find the run by"
        )
        parser.add_argument(
            "--allow-change",
            type=str,
            nargs="+",
            default=[],
            help="settings that may differ from those of the checkpoint that --ckpt_path names",
        )
        parser.add_argument("--needs.disk_gib", type=float, default=1.0, help="checked at start")
        parser.add_argument("--needs.memory_gib", type=float, default=1.0, help="checked at start")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        sources = settings_sources(args)
        arguments = [HELP if word == HELP_ALL else word for word in args]

        # The keys of a file are the options of its subcommand, of which one has been named.
        if len(self._subcommand_parsers) == 1:
            (options,) = self._subcommand_parsers.values()
            self._check_keys(args, sources, options)
            if set(HELP_FLAGS) & set(args):
                print(help_page(options, sources))
                sys.exit(0)
            arguments = with_implied(arguments, self.implied)

        try:
            super().parse_arguments(parser, arguments)
        except ArgumentError as error:
            raise ValueError(parser_message(str(error), sources)) from error

        # Their values now stand at the long keys.
        config = self.config[self.config["subcommand"]]
        for short in SHORT_OPTIONS:
            config.pop(short, None)

        self.files = config_files(args)
        find_beside(config, self.files)

    def _check_keys(
        self, arguments: list[str], sources: list[SettingsSource], options: LightningArgumentParser
    ) -> None:
        """Checks the keys of files and flags, and finds what short options stand for."""
        keys = {action.dest.partition(".")[0] for action in options._actions}
        keys -= {"help", "config", "print_config"}
        check_config_files(arguments, keys)
        check_flags(sources, keys)
        check_encoder(self.arguments, sources)
        check_linked(sources)

        self.implied = implied_settings(sources)
        for setting in self.implied:
            check_flag(f"{setting.label} (short for {setting.key})", setting.key, sources, keys)

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        for setting in self.implied:
            if setting.reason:
                rank_zero_only(print)(setting.reason, file=sys.stderr)

        # The parser has made texts of defaults such as a `torch.device`, which no class accepts.
        drop_unwritable_defaults(config)
        check_trainer_options(config.trainer, self.subcommand)

        for key in ("name", "experiment"):
            if not config[key]:
                raise ValueError(f"{key} is not set: give --{key}, or the key in a --config file.")
        # Both become folders: a file of settings from elsewhere must not choose one outside `runs`.
        check_plain(config.name, "name")
        for part in Path(config.experiment).parts:
            check_plain(part, f"A part of experiment {config.experiment!r}")

        # Only a root that the files link to `data_root`; a streamed tar may need none.
        arguments = config.data.init_args or {}
        is_linked = config.data_root and arguments.get("root") == config.data_root
        if is_linked and not is_unindexed(arguments.get("pairs") or []):
            check_data_root(Path(config.data_root), self.files)

        # A full disk shall stop the run now, not after hours of training.
        check_disk(experiment_folder(config).path, config.needs.disk_gib)
        check_memory(config.needs.memory_gib)
        torch.set_float32_matmul_precision("high")

        callbacks = config.trainer.callbacks or []
        blocks = callbacks if isinstance(callbacks, list) else [callbacks]
        for line in dropped_callbacks(self.files, [block.class_path for block in blocks]):
            rank_zero_only(print)(line, file=sys.stderr)

        self.fingerprint = run_fingerprint(config, self.subcommand)
        self.settings = settings_of(config, self.subcommand)
        outputs = own_outputs(config, self.subcommand)
        if not config.trainer.fast_dev_run:
            self._check_places()
        if self.subcommand == "fit":
            check_init(config)
        self.inputs = input_identities(self.settings, outputs, find_input)
        check_reuse(config, outputs)

        # Before a folder is claimed, so that a refused checkpoint leaves none behind.
        checkpoint = config.get("ckpt_path")
        if self.subcommand == "fit" and checkpoint is not None and Path(checkpoint).is_file():
            whole = settings_of(config, self.subcommand, machine=True)
            check_resume(Path(checkpoint), whole, self.inputs, config.allow_change)

        self.claimed = self._claim()
        self.run_folder = self.claimed.path
        # Before anything is put into this folder: a run of this text has its own.
        self.config_text = self._parser(self.subcommand).dump(config, skip_none=False)

        # A user who has trained under this name would wonder why it is not done.
        if self.subcommand == "fit" and not config.trainer.fast_dev_run:
            link = experiment_folder(config).run(config.name).path
            if line := made_anew(link, self.config_text):
                rank_zero_only(print)(line, file=sys.stderr)

        config.trainer.default_root_dir = str(self.run_folder)
        # A development run has no loggers, and its folder does not lie below `runs`.
        shared = None if config.trainer.fast_dev_run else config.log_folder
        self.log_folders = LogFolders.of(self.run_folder, Path(config.runs), shared)
        place_loggers(config.trainer, self.log_folders, self.run_folder.name)

    @override
    def instantiate_classes(self) -> None:
        # After settings were recorded and hashed, which must not depend on the package's place.
        for part in ("model", "data", "trainer"):
            place_inputs(self.config[self.subcommand][part])

        try:
            with self._with_making_commands():
                super().instantiate_classes()
                if self.subcommand == "fit" and (init := self.config[self.subcommand].init):
                    take_weights(self.model, init)
        except BaseException:
            self.claimed.abandon()
            raise

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self.config[self.subcommand]
        facts = facts_behind(config, self.subcommand)
        selected = SelectedWeights(config.select) if self.subcommand == "fit" else None
        self.record = RunRecord(
            run=str(self.run_folder),
            link=link_name(config.name, self.subcommand),
            config=self.config_text,
            fingerprint=self.fingerprint,
            inputs=self.inputs,
            lock=self.claimed.lock,
            announcement=self.claimed.announcement,
            owner=config.owner or "",
            tags=config.tags,
            inherited_facts=facts,
            selected=selected,
        )

        # Lightning's own default would put its files into `lightning_logs/version_N` below the
        # run.
        if config.trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(str(self.log_folders.run), name="", version="")

        trainer = super().instantiate_trainer(**kwargs)
        keep_checkpoints_in(trainer, self.run_folder)
        keep_whole_checkpoints(trainer)
        drop_number_of_epochs(trainer)

        if self.subcommand == "fit":
            trainer.callbacks.insert(0, TrainingHealth())
            trainer.callbacks += [selected, StopAtStep()]
            trainer.fit_loop = WholeFitLoop.of(trainer)

        if self.subcommand in ("fit", "test"):
            trainer.callbacks.append(HParams(flattened(self.settings)))
        trainer.callbacks.append(Interruption())  # last: a checkpoint holds what the others did

        for callback in having(trainer.callbacks, FolderCallback):
            callback.describe_run(self.fingerprint, self.command, facts)

        # A development run keeps nothing, so it has no record.
        if not trainer.fast_dev_run:
            trainer.callbacks.insert(0, self.record)
        return trainer

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if not self.trainer.fast_dev_run:
            try:
                with self._with_making_commands():
                    super()._run_subcommand(subcommand)
            except BaseException as error:
                if isinstance(error, USER_ERRORS) and not self.record.has_begun:
                    self.claimed.discard()
                note_reason(self.run_folder, reason_of(error, self.run_folder))
                raise
            if self.trainer.is_global_zero:
                self._print_end(subcommand)
            return

        # Nothing that a development run makes may be taken for a product.
        try:
            with self._with_making_commands():
                super()._run_subcommand(subcommand)
        finally:
            if self.claimed.vanishes:
                shutil.rmtree(self.run_folder, ignore_errors=True)
        if self.trainer.is_global_zero:
            count = int(self.trainer.fast_dev_run)
            print(f"fast_dev_run: {subcommand} ran {count} batch(es), nothing is kept")

    def _print_end(self, subcommand: str) -> None:
        """Prints what a test that ranks has found, with intervals and the chance level, and the
        command that comes next."""
        test = RankedTest.read(self.run_folder) if subcommand == "test" else None
        if test is not None:
            print(f"\n{test.table().markdown()}")
            print("intervals: 95 %, over concepts; chance: candidates in random order")

        config = self.config[subcommand]
        if line := next_line(config, subcommand, self.files, ranks=test is not None):
            print(line, flush=True)

    @override
    def _parse_ckpt_path(self) -> None:
        """Takes no settings from a checkpoint: Lightning would let them, and the classes that they
        name, beat those of the user."""
        command = self.config.get("subcommand")
        checkpoint = self.config[command].get("ckpt_path") if command else None
        if checkpoint is not None and Path(checkpoint).is_file():
            read_weights(Path(checkpoint), mmap=True)  # before anything is made

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True  # Lightning trusts a checkpoint that has an address

        if subcommand == "predict":
            kwargs["return_predictions"] = False  # a SidecarWriter has them

        if subcommand == "fit":
            kwargs["ckpt_path"] = start_checkpoint(kwargs.get("ckpt_path"), self.run_folder)
        return kwargs

    @contextlib.contextmanager
    def _with_making_commands(self) -> Iterator[None]:
        """Adds to an error about a missing or broken folder the command that makes it."""
        try:
            yield
        except (OSError, ValueError) as error:
            message = innermost(str(error))
            config = self.config[self.subcommand]
            folder, data_root = experiment_folder(config).path, Path(config.data_root or "")
            more = making_commands(message, folder, data_root, self.files, self.arguments)
            if not more:
                raise
            raise ValueError(message + more) from error

    def _check_places(self) -> None:
        """Refuses folders that another kind of run or command has made."""
        config = self.config[self.subcommand]
        kind = RunKind(self.subcommand, config.model.class_path.rpartition(".")[2])
        sidecars = sidecar_folders(config) if self.subcommand == "predict" else []
        check_places(Path(config.runs), experiment_folder(config), config.name, kind, sidecars)

        if self.subcommand == "test":
            for folder in sidecar_folders(config, "BenchmarkScores"):
                check_kind(folder, "scores", FolderKind.SCORES)

    def _claim(self) -> ClaimedFolder:
        config = self.config[self.subcommand]
        if config.trainer.fast_dev_run:
            return ClaimedFolder.temporary()

        name = link_name(config.name, self.subcommand)
        commit, _ = git_state(Path(__file__).parent)

        # Only a fit can be continued; the other subcommands always get a new folder.
        return ClaimedFolder.claim(
            experiment_folder(config).path,
            f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{commit or 'nogit'}",
            self.fingerprint,
            pattern=f"*-{glob.escape(name)}-*" if self.subcommand == "fit" else None,
        )


def _user() -> str:
    """Returns the name of the account; an empty text in a container without accounts."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def parse(arguments: list[str]) -> Namespace:
    """Returns the resolved configuration of a command line; nothing is built."""
    cli = _ParseOnly(arguments)
    return cli.config[cli.subcommand]


def build(arguments: list[str]) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    """Builds module and data of a `fit` command line; runs and writes nothing."""
    cli = _BuildOnly(arguments)
    return cli.model, cli.datamodule


class _BuildOnly(ExperimentCLI):
    @override
    def before_instantiate_classes(self) -> None:
        pass

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


class _ParseOnly(_BuildOnly):
    @override
    def instantiate_classes(self) -> None:
        pass


def sidecar_folders(config: Namespace, writer: str = "SidecarWriter") -> list[Path]:
    """Returns the folders that the configuration's SidecarWriters write, or other callbacks."""
    callbacks = config.trainer.callbacks or []
    named = [c for c in callbacks if c.class_path.endswith(writer)]
    return [Path(callback.init_args.folder) for callback in named]


def experiment_folder(config: Namespace) -> ExperimentFolder:
    """Returns the folder that holds the runs of a configuration's experiment."""
    return ExperimentFolder(Path(config.runs) / config.experiment)


def own_outputs(config: Namespace, subcommand: str) -> list[Path]:
    """Returns the folders that the run or a later one writes: no input, even if they exist."""
    if subcommand == "fit":
        link = experiment_folder(config).run(config.name).path
        return [link, *sidecar_folders(config)]
    return sidecar_folders(config) if subcommand == "predict" else []


def check_reuse(config: Namespace, outputs: list[Path]) -> None:
    """Raises ValueError if a run would reuse draws from the very folder that it writes."""
    reused = (config.model.init_args or {}).get("reuse") or []
    written = {output.resolve() for output in outputs}

    if wrong := [folder for folder in reused if Path(folder).resolve() in written]:
        raise ValueError(
            f"model.reuse names {wrong[0]}, which this run writes. Move the old folder away first "
            f"and name it there: mv {wrong[0]} {wrong[0]}-old, then --model.reuse "
            f"'[{wrong[0]}-old]'."
        )


def check_init(config: Namespace) -> None:
    """Raises ValueError if `init` names no weights that a fit of this configuration could take."""
    if not config.init:
        return
    if config.get("ckpt_path"):
        raise ValueError(
            f"init {config.init} and ckpt_path {config.ckpt_path} both name weights to start from: "
            "a new training needs init alone, a continued one ckpt_path alone."
        )

    # The fingerprint would change with the link, and the pipeline would train it again and again.
    link = experiment_folder(config).run(config.name).path
    if Path(config.init).absolute().is_relative_to(link.absolute()):
        raise ValueError(
            f"init {config.init} lies below the link {link}, which this fit moves to its own run: "
            f"name the folder behind it ({link.resolve()}), or give the new fit another --name."
        )
    find_backbone(Path(config.init))  # before a folder is claimed


def take_weights(module: pl.LightningModule, init: str) -> None:
    """Gives a module the weights that a run has left.

    Raises:
        ValueError: the module trains no backbone, or another one than that run.
    """
    if not isinstance(module, BackboneModule):
        raise ValueError(
            f"init {init} names the weights of a backbone, but {type(module).__name__} trains none "
            "of its own: leave init out."
        )
    module.start_from(find_backbone(Path(init)).folder)


def with_base(arguments: list[str]) -> list[str]:
    """Puts `--config base.yaml` behind the subcommand, in front of the user's configs."""
    for position, argument in enumerate(arguments):
        if argument in SUBCOMMANDS:
            base = ["--config", str(CONFIGS / "base.yaml")]
            return [*arguments[: position + 1], *base, *arguments[position + 1 :]]
    return arguments


def settings_of(config: Namespace, subcommand: str, machine: bool = False) -> dict[str, Any]:
    """Returns the part of a configuration that decides results; with `machine` also the
    model's `MACHINE_KEYS`, as the file of an earlier run has them."""
    data = config.as_dict()
    arguments = data["data"].get("init_args") or {}
    for key in MACHINE_KEYS:
        arguments.pop(key, None)
    for key in LATER_KEYS:
        if arguments.get(key, ABSENT) is None:
            del arguments[key]

    select = data.get("select") or "last"
    trainer = deciding_trainer(data["trainer"], select if subcommand == "fit" else "last")
    kept = {key: data[key] for key in ("model", "data", "seed_everything")}
    # Its default counts as nothing, so that fingerprints of earlier runs stay as they are.
    if subcommand == "fit" and select != "last":
        kept["select"] = select
    if subcommand == "fit" and data.get("init"):
        kept["init"] = data["init"]
    if not machine:
        kept["model"] = without_machine_keys(kept["model"])
    return {"subcommand": subcommand, "trainer": trainer, **kept}


def without_machine_keys(data: Any) -> Any:
    """Returns `data` without arguments whose class calls them the machine's (`MACHINE_KEYS`)."""
    return _cut_keys(data, "MACHINE_KEYS")[0]


def facts_behind(config: Namespace, subcommand: str) -> TrainedFacts:
    """Returns the facts that a run inherits from models, sidecars and checkpoint that it names."""
    outputs = own_outputs(config, subcommand)
    training, choosing = _cut_keys(settings_of(config, subcommand), "CALIBRATION_KEYS")

    # A judge that chooses among rationales trains no weights: its facts are recorded apart.
    facts = inherited_facts(training, outputs)
    facts |= inherited_facts(choosing, outputs).as_calibrated()

    # The weights, besides the run: a run that has lost its list of facts is noticed there.
    if subcommand == "fit" and config.init:
        facts |= inherited_facts(str(find_backbone(Path(config.init)).folder))

    # An earlier run of the same name is an output, but its checkpoint is where this one starts.
    return facts | inherited_facts(config.get("ckpt_path"))


def _cut_keys(data: Any, attribute: str) -> tuple[Any, list[Any]]:
    """Returns data without the arguments that a class lists in `attribute`, and their values."""
    if isinstance(data, list):
        items = [_cut_keys(item, attribute) for item in data]
        return [item for item, _ in items], [value for _, cut in items for value in cut]
    if not isinstance(data, dict):
        return data, []

    path = data.get("class_path")
    keys = getattr(locate(path), attribute, ()) if isinstance(path, str) else ()
    init_args = data.get("init_args") or {}
    values = [value for key, value in init_args.items() if key in keys]
    if keys:
        data = data | {"init_args": {k: v for k, v in init_args.items() if k not in keys}}

    kept = {}
    for key, value in data.items():
        kept[key], cut = _cut_keys(value, attribute)
        values += cut
    return kept, values


def run_fingerprint(config: Namespace, subcommand: str) -> str:
    """Returns a hash of the settings that decide results, of their inputs, and of the checkpoint
    that the run starts from."""
    settings, outputs = settings_of(config, subcommand), own_outputs(config, subcommand)
    plain = fingerprint(settings, outputs, find_input)
    checkpoint = config.get("ckpt_path")

    # A fit that continues a run of equal settings and inputs is that run.
    if checkpoint is None or (
        subcommand == "fit" and fingerprint_of(run_of(Path(checkpoint))) == plain
    ):
        return plain
    return fingerprint(settings | {"ckpt_path": checkpoint}, outputs, find_input)
