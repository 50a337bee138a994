"""Textual Inversion on Stable Diffusion 1.x and 2.x, with the flags of the script in diffusers' guide.

    accelerate launch textual_inversion.py \
      --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --train_data_dir cat \
      --placeholder_token "<cat-toy>" --initializer_token toy --max_train_steps 3000 --learning_rate 5e-4 --scale_lr

The flags become a `Recipe`, and `pseudoword.train` carries it out. README.md says what differs from the guide's script.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from pseudoword import watch
from pseudoword.errors import Interrupted, PseudowordError, RecipeError
from pseudoword.formats import FURTHER_IN_FOLDER
from pseudoword.interruption import carry_out
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import (
    BaseModel,
    ConceptRecipe,
    Data,
    EngineRecipe,
    LrScheduler,
    Output,
    Precision,
    Recipe,
    Schedule,
    Tracker,
    Training,
    Validation,
)

SCHEDULERS, PRECISIONS, TRACKERS = get_args(LrScheduler), get_args(Precision), get_args(Tracker)


def main(
    arguments: Sequence[str] | None = None, make_parser: Callable[[], argparse.ArgumentParser] | None = None
) -> int:
    """Carry out the guide's command line and return its exit code. Only the main process prints.

    `make_parser` gives another script's flags; what that has none of takes the defaults of this one's.
    """
    try:
        args = parse_args(arguments, (make_parser or parser)())
        recipe = recipe_of(args)
        if arguments is None and args.hub_token is not None:
            hide_token(args.hub_token)
        learn(recipe, args.resume_from_checkpoint, args.hub_token)
    except Interrupted as error:
        ended, code = str(error), error.code
    except PseudowordError as error:
        ended, code = f"error: {error}", 1
    except KeyboardInterrupt:
        ended, code = "Interrupted. Go on from the last checkpoint with --resume_from_checkpoint latest.", 130
    else:
        ended, code = where(recipe), 0
    if watch.is_main_process():
        print(ended, file=sys.stderr if code else sys.stdout)
    return code


def hide_token(token: str) -> None:
    """Take the token out of the command line, which trackers and others on the machine can read.

    Where the system can, the same command starts over in this process, with the token in HF_TOKEN instead.
    """
    words = without_token(sys.argv[1:])
    own = len(sys.orig_argv) - len(sys.argv) + 1  # where this script's words begin among the interpreter's
    if sys.orig_argv[own:] == sys.argv[1:]:  # not so in a notebook
        sys.orig_argv[own:] = words
        if os.name == "posix":
            os.execve(sys.executable, sys.orig_argv, {**os.environ, "HF_TOKEN": token})
    sys.argv[1:] = words


def without_token(words: Sequence[str]) -> list[str]:
    """Return a command line without --hub_token and its value, however argparse lets it be written."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if not (name.startswith("--hub_t") and "--hub_token".startswith(name)):
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept


def learn(recipe: Recipe, resume: str | None, hub_token: str | None) -> None:
    """Train to the end, showing it on the main process."""
    watch.show_messages()
    from pseudoword.training import train  # torch and diffusers: seconds that --help does not wait for

    carry_out(
        lambda stop: train(recipe, resume=resume, stop=stop, hub_token=hub_token), "--resume_from_checkpoint latest"
    )


def where(recipe: Recipe) -> str:
    """Return a sentence on where the word is, and the line of diffusers that loads it."""
    [concept], folder = recipe.concepts, recipe.output.folder
    several = any(Path(folder, name).is_file() for name in FURTHER_IN_FOLDER)  # text encoders, as SDXL has
    loading = f"pseudoword.load(pipeline, {folder!r})" if several else f"pipeline.load_textual_inversion({folder!r})"
    kind = "StableDiffusionXLPipeline" if several else "StableDiffusionPipeline"
    pipeline = f"\nThe whole pipeline is there too: {kind}.from_pretrained({folder!r})"
    return (
        f"The word {concept.token} is in {folder}. In diffusers: {loading}"
        f"{pipeline if recipe.output.full_pipeline else ''}"
    )


# From flags to a recipe


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe that the flags stand for. RecipeError if they contradict each other or are out of range."""
    length = f"{args.num_train_epochs} epochs" if args.max_train_steps is None else f"{args.max_train_steps} steps"
    between = f"{args.validation_steps}" if args.validation_epochs is None else f"{args.validation_epochs} epochs"
    return Recipe(
        concepts=(
            ConceptRecipe(
                token=args.placeholder_token,
                pictures=args.train_data_dir,
                initializer=args.initializer_token,
                property=args.learnable_property,
                num_vectors=args.num_vectors,
            ),
        ),
        base=BaseModel(
            model=args.pretrained_model_name_or_path,
            config=args.config,
            revision=args.revision,
            variant=args.variant,
            tokenizer=args.tokenizer_name,
            vae=args.pretrained_vae_model_name_or_path,
        ),
        method=ClassicOptions(args.adam_beta1, args.adam_beta2, args.adam_weight_decay, args.adam_epsilon),
        data=Data(
            resolution=args.resolution,
            fit="crop" if args.center_crop else "squash",
            masks="none",
            flip_p=0.5,
            repeats=args.repeats,
            workers=args.dataloader_num_workers,
        ),
        training=Training(
            seed=args.seed,
            batch_size=args.train_batch_size,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        ),
        schedule=Schedule(
            steps=length,
            learning_rate=args.learning_rate,
            scale_lr=args.scale_lr,
            lr_scheduler=args.lr_scheduler,
            lr_warmup_steps=args.lr_warmup_steps,
            lr_num_cycles=args.lr_num_cycles,
        ),
        engine=EngineRecipe(
            engine=getattr(args, "engine", "torch"),  # no flag: it is another script that has another one
            mixed_precision=args.mixed_precision,
            gradient_checkpointing=args.gradient_checkpointing,
            xformers=args.enable_xformers_memory_efficient_attention,
            allow_tf32=args.allow_tf32,
        ),
        validation=Validation(
            validation_prompts=() if args.validation_prompt is None else (args.validation_prompt,),
            num_validation_images=args.num_validation_images,
            validation_steps=between,
            validation_seed=args.seed or 0,
        ),
        output=Output(
            folder=args.output_dir,
            save_steps=args.save_steps,
            checkpointing_steps=args.checkpointing_steps,
            checkpoints_total_limit=args.checkpoints_total_limit,
            full_pipeline=args.save_as_full_pipeline,
            safe_serialization=not args.no_safe_serialization,
            report_to=args.report_to,
            logging_dir=args.logging_dir,
            push_to_hub=args.push_to_hub,
            hub_model_id=args.hub_model_id,
        ),
    )


def parse_args(
    arguments: Sequence[str] | None = None, reader: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """Read a command line. RecipeError if it asks for what cannot be done.

    Two defaults depend on what else was given: without `max_train_steps` a given `num_train_epochs` sets the length
    (`max_train_steps` is then None), and without `mixed_precision` Accelerate's configuration does.
    """
    reader = reader or parser()
    args = reader.parse_args(arguments)
    # Read again over blanks: whatever is not None afterwards was on the command line.
    over_blanks = reader.parse_args(arguments, argparse.Namespace(**dict.fromkeys(vars(args))))
    given = {name for name, value in vars(over_blanks).items() if value is not None}
    _refuse(args)
    if "num_train_epochs" in given and "max_train_steps" not in given:
        args.max_train_steps = None
    if "mixed_precision" not in given:
        args.mixed_precision = _configured_precision()
    return args


def _refuse(args: argparse.Namespace) -> None:
    if args.hub_token is not None and args.report_to in ("wandb", "all"):
        raise RecipeError(
            f"--report_to {args.report_to} and --hub_token do not go together, as Weights & Biases records the command "
            "line and the token in it; log in to the Hub with `hf auth login` instead, or set HF_TOKEN."
        )
    if args.only_save_embeds and args.save_as_full_pipeline:
        raise RecipeError("--only_save_embeds and --save_as_full_pipeline contradict each other; leave one out.")
    if args.lr_scheduler == "piecewise_constant":
        raise RecipeError(
            "--lr_scheduler piecewise_constant needs rules that no flag here can give; "
            f"choose one of {', '.join(SCHEDULERS[:-1])}, or use `pseudoword train` with --lr-step-rules."
        )


def _configured_precision() -> str:
    """Return the precision that `accelerate launch` or `accelerate config` was told, 'no' if neither was."""
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if configured not in PRECISIONS:
        raise RecipeError(
            f"Accelerate is configured for mixed precision {configured!r}, which this cannot train in; "
            f"say --mixed_precision {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}."
        )
    return configured


# The flags


def parser() -> argparse.ArgumentParser:
    """Return the parser of the guide's flags."""
    flags = argparse.ArgumentParser(
        usage="textual_inversion.py --pretrained_model_name_or_path MODEL --train_data_dir FOLDER "
        "--placeholder_token WORD --initializer_token WORD [FLAGS]",
        description="Teach Stable Diffusion 1.x or 2.x a new word from a folder of pictures.",
        formatter_class=_Help,
    )
    _word(flags.add_argument_group("the word and its pictures"))
    _base(flags.add_argument_group("the base model"))
    _length(flags.add_argument_group("how long, and in what portions"))
    _optimizer(flags.add_argument_group("learning rate and AdamW"))
    _computing(flags.add_argument_group("computing"))
    _output(flags.add_argument_group("what is written"))
    _looking(flags.add_argument_group("what is looked at along the way"))
    _hub(flags.add_argument_group("the Hub"))
    return flags


def leave_out(flags: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Take flags away that another script has none of; their defaults, of which the recipe is made, stay."""
    for action in [action for action in flags._actions if action.option_strings[0] in names]:
        action.help = argparse.SUPPRESS
        for name in action.option_strings:
            del flags._option_string_actions[name]


class _Help(argparse.HelpFormatter):
    """Tells a flag's default where it has one that says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        silent = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        return (action.help or "") + ("" if silent else " (default: %(default)s)")


Flags = argparse._ArgumentGroup  # the type has no public name


def _word(flags: Flags) -> None:
    flags.add_argument("--placeholder_token", required=True, help="the new word, as prompts will have it: '<cat-toy>'")
    flags.add_argument("--train_data_dir", required=True, help="folder of pictures; three to six are enough")
    flags.add_argument(
        "--initializer_token",
        required=True,
        help="known word or phrase that the new one starts as, or an embedding file to go on from",
    )
    flags.add_argument(
        "--learnable_property",
        choices=("object", "style"),
        default="object",
        help="what the pictures show; chooses the captions",
    )
    flags.add_argument("--num_vectors", type=int, default=1, help="embedding vectors that the word has")
    flags.add_argument("--resolution", type=int, default=512, help="side of the square training pictures in pixels")
    flags.add_argument("--center_crop", action="store_true", help="cut the centre square instead of squashing to it")
    flags.add_argument("--repeats", type=int, default=100, help="times an epoch shows each picture")


def _base(flags: Flags) -> None:
    flags.add_argument(
        "--pretrained_model_name_or_path",
        required=True,
        help="folder in diffusers layout, Hub id, .safetensors or .ckpt file, or 'toybox'",
    )
    flags.add_argument(
        "--config",
        help="with such a file: folder in diffusers layout, or Hub id, of a base like it; our own flag",
    )
    flags.add_argument(
        "--pretrained_vae_model_name_or_path",
        help="folder, file or Hub id of a VAE to use instead of the model's own; our own flag",
    )
    flags.add_argument("--revision", help="branch, tag or commit on the Hub")
    flags.add_argument("--variant", help="variant of the weight files, such as fp16")
    flags.add_argument("--tokenizer_name", help="folder or Hub id of a tokenizer to use instead of the model's own")


def _length(flags: Flags) -> None:
    flags.add_argument("--max_train_steps", type=int, default=5000, help="optimizer steps; overrides epochs")
    flags.add_argument(
        "--num_train_epochs", type=int, default=100, help="the length in epochs, if given without --max_train_steps"
    )
    flags.add_argument("--train_batch_size", type=int, default=16, help="pictures per micro-batch and process")
    flags.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="micro-batches whose gradients make one step"
    )
    flags.add_argument("--seed", type=int, help="decides every random choice; drawn and recorded if not given")


def _optimizer(flags: Flags) -> None:
    flags.add_argument("--learning_rate", type=float, default=1e-4, help="peak learning rate")
    flags.add_argument(
        "--scale_lr", action="store_true", help="multiply it by processes, accumulation steps and batch size"
    )
    flags.add_argument("--lr_scheduler", choices=SCHEDULERS, default="constant", help="its course over the run")
    flags.add_argument(
        "--lr_warmup_steps", type=int, default=500, help="optimizer steps of rising from 0; 'constant' has none"
    )
    flags.add_argument("--lr_num_cycles", type=int, default=1, help="cycles of 'cosine_with_restarts'")
    flags.add_argument("--adam_beta1", type=float, default=0.9, help="decay of the mean of gradients")
    flags.add_argument("--adam_beta2", type=float, default=0.999, help="decay of the mean of squared gradients")
    flags.add_argument("--adam_weight_decay", type=float, default=1e-2, help="pull of the word's vectors toward zero")
    flags.add_argument("--adam_epsilon", type=float, default=1e-8, help="keeps steps finite where gradients vanish")


def _computing(flags: Flags) -> None:
    flags.add_argument(
        "--mixed_precision",
        choices=PRECISIONS,
        default="no",
        help="precision of the UNet; if not given, what Accelerate is configured for",
    )
    flags.add_argument("--allow_tf32", action="store_true", help="allow TF32 matrix products on NVIDIA GPUs")
    flags.add_argument("--gradient_checkpointing", action="store_true", help="less memory for about a third more time")
    flags.add_argument(
        "--enable_xformers_memory_efficient_attention", action="store_true", help="xformers' attention for PyTorch's"
    )
    flags.add_argument(
        "--dataloader_num_workers",
        type=int,
        default=0,
        help="processes that load pictures; idle here, as each picture is read and encoded once",
    )
    flags.add_argument("--local_rank", type=int, default=-1, help="for old launchers; Accelerate reads LOCAL_RANK")


def _output(flags: Flags) -> None:
    flags.add_argument("--output_dir", default="text-inversion-model", help="folder of the run and of the word")
    flags.add_argument("--save_steps", type=int, default=500, help="steps between learned_embeds-steps-N files")
    flags.add_argument("--checkpointing_steps", type=int, default=500, help="steps between checkpoints")
    flags.add_argument("--checkpoints_total_limit", type=int, help="newest checkpoints to keep; all if not given")
    flags.add_argument("--resume_from_checkpoint", help="checkpoint to go on from: its folder, or 'latest'")
    flags.add_argument("--save_as_full_pipeline", action="store_true", help="also write a whole pipeline (gigabytes)")
    flags.add_argument("--only_save_embeds", action="store_true", help="write the word alone, which is the default")
    flags.add_argument("--no_safe_serialization", action="store_true", help="write .bin files only, no .safetensors")


def _hub(flags: Flags) -> None:
    flags.add_argument("--push_to_hub", action="store_true", help="upload the word, its card and sample pictures")
    flags.add_argument("--hub_token", help="token to upload with; better is HF_TOKEN or `hf auth login`")
    flags.add_argument("--hub_model_id", help="repository to upload to; by default --output_dir's name")


def _looking(flags: Flags) -> None:
    flags.add_argument("--validation_prompt", help="prompt to sample pictures with on the way, with the word in it")
    flags.add_argument("--num_validation_images", type=int, default=4, help="pictures to sample each time")
    flags.add_argument("--validation_steps", type=int, default=100, help="steps between samples")
    flags.add_argument("--validation_epochs", type=int, help="epochs between samples, instead of steps")
    flags.add_argument("--report_to", choices=TRACKERS, default="tensorboard", help="experiment tracker")
    flags.add_argument("--logging_dir", default="logs", help="folder of the tracker's files, in --output_dir")


if __name__ == "__main__":
    sys.exit(main())
