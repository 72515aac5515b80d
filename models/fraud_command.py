"""`python -m models.fraud`: fits the fraud model, and says how good it is."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from app.errors import ConfigError
from models.fraud import WEIGHTS, FraudModel, fit, load, save
from models.fraud_history import read_history, simulate_history
from models.handbook import FOLDS, History, first_training_end, judge


def _fit_command(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # a batch is too small to share out: two threads were slower on a busy machine
    history = simulate_history(options.seed, options.days)
    training = history.where(history.day < first_training_end(history))
    network = fit(training.columns, training.fraud, seed=options.seed)
    quality = _judge(history, FraudModel(network, version=""))
    card = {
        "made": datetime.now(UTC).date().isoformat(),
        "data": f"simulated by app.simulate, seed {options.seed}, the first {training.day[-1] + 1} days",
        "rows": len(training.fraud),
        "frauds": int(training.fraud.sum()),
        "metrics": quality,
        "measured": f"Fraud Detection Handbook's protocol on the last {FOLDS} weeks of {options.days} days",
    }
    version = save(network, options.out, card)
    print(json.dumps({"weights": str(options.out), "version": version, **card}, indent=2))


def _evaluate_command(options: argparse.Namespace) -> None:
    model = load(options.weights)
    quality = _judge(read_history(options.file), model)
    report = {"weights": str(options.weights), "version": model.version, "metrics": quality}
    print(json.dumps(report, indent=2))


def _judge(history: History, model: FraudModel) -> dict[str, float]:
    quality = judge(history, lambda columns: model.predict(columns)["risk"])
    return {name: round(value, 4) for name, value in quality._asdict().items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.fraud")
    commands = parser.add_subparsers(required=True)
    fitting = commands.add_parser("fit", help="fit the network on simulated history and write its weights")
    fitting.add_argument("--days", type=int, default=150, help="the last weeks are judged on")
    fitting.add_argument("--seed", type=int, default=7)
    fitting.add_argument("--out", type=Path, default=WEIGHTS, help="the card goes beside it")
    fitting.set_defaults(run=_fit_command)
    evaluating = commands.add_parser("evaluate", help="judge weights on recorded payments")
    evaluating.add_argument("--file", type=Path, required=True, help="CSV as the Handbook has it")
    evaluating.add_argument("--weights", type=Path, default=WEIGHTS)
    evaluating.set_defaults(run=_evaluate_command)
    return parser


def main() -> None:
    options = _parser().parse_args()
    try:
        options.run(options)
    except (ConfigError, OSError) as error:
        raise SystemExit(str(error)) from error
