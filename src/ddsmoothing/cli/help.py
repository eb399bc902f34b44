"""How the command line shows its help: whole summaries of commands, and the options of large commands in groups."""

from __future__ import annotations

from typing import Final

import click

LARGE: Final = 12  # options; fewer stand in one list
WIDEST: Final = 28  # column of the options, so that all groups have the same
SUMMARY: Final = 200  # characters, more than any summary has
SECTIONS: Final[dict[str, tuple[str, ...]]] = {  # parameters by what they are about, in the order of the sections
    "Presets": ("preset", "file", "settings"),
    "Model": (
        *("model", "denoiser", "classifier", "resize", "arch", "num_classes", "normalize", "condition", "weights"),
        *("weights_key", "output", "trust", "random_weights", "init", "init_optimizer", "freeze", "model_id"),
    ),
    "Data": (
        *("data", "split", "skip", "maximum", "no_labels", "units", "snap", "levels", "augmentation", "validation"),
        "download",
    ),
    "Objective": (
        *("objective", "copies", "epsilon", "attack_steps", "attack_warmup", "macer_weight", "macer_gamma"),
        *("macer_beta", "consistency_weight", "catrs_weight", "predictions", "teacher", "confidence", "temperature"),
        *("soft_targets", "favour_accuracy", "with_offsets"),
    ),
    "Sigma": (
        *("norm", "sigma", "lambda_", "sigmas", "experts", "data_dependent", "sigma0", "sigma_min", "sigma_max"),
        *("sigma_grid", "method", "step", "iterations", "anchored", "keep_best", "switch_epoch", "sigma_init"),
        *("sigma_steps", "sigma_step", "sigma_samples", "sigma0_test"),
        *("sigma_steps_test", "sigma_steps_after", "allow_large_sigma"),
        *("pair_sigmas", "rule", "rule_sigmas", "taus", "no_reach", "gate_sigma", "gate_groups"),
    ),
    "Optimisation": (
        *("epochs", "batch", "optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "step_epochs"),
        *("step_factor", "warmup", "recompute_batchnorm", "keep"),
    ),
    "Samples and bounds": (
        *("vote", "offsets", "allow_seen", "alpha", "n0", "n", "n_max", "samples", "radius", "radii", "paper", "bound"),
        *("randomized", "label_aware", "seed"),
    ),
    "Machine": (
        *("device", "block_size", "precision", "channels_last", "compiled", "fast", "executor", "address", "workers"),
        "shard",
    ),
    "Attack": ("factors", "level", "steps", "restarts"),
    "Output": ("out", "budget", "forecast", "no_preflight", "tensorboard", "as_json"),
}
OTHER: Final = "Other options"
SECTION_OF: Final = {name: section for section, names in SECTIONS.items() for name in names}


class Grouped(click.Command):
    """A command whose options, where they are many, stand in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        params = self.get_params(ctx)
        params = [one for one in params if isinstance(one, click.Option) and not one.hidden]
        if len(params) <= LARGE:
            super().format_options(ctx, formatter)
            return
        rows = {one.name: row for one in params if (row := one.get_help_record(ctx))}
        widest = min(WIDEST, max(len(row[0]) for row in rows.values()))
        for section, names in {**SECTIONS, OTHER: tuple(name for name in rows if name not in SECTION_OF)}.items():
            if found := [rows[name] for name in names if name in rows]:
                with formatter.section(section):
                    formatter.write_dl([(option.ljust(widest), text) for option, text in found])


class Group(click.Group):
    """A group of commands, each with its whole summary."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, with its options in groups; so are those of a group's own commands."""
        if isinstance(cmd, click.Group):
            cmd.commands = {key: grouped(inner) for key, inner in cmd.commands.items()}
        super().add_command(grouped(cmd), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.commands[name].get_short_help_str(SUMMARY)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def grouped(command: click.Command) -> click.Command:
    """The same command, with its options in groups; a group as it is, but for its summaries."""
    if isinstance(command, click.Group):
        return Group(command.name, commands=command.commands, help=command.help, epilog=command.epilog)
    return Grouped(
        command.name,
        callback=command.callback,
        params=command.params,
        help=command.help,
        epilog=command.epilog,
        short_help=command.short_help,
        context_settings=command.context_settings,
    )
