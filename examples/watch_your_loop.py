"""Record a PyTorch loop of your own, and ask which examples it never learned: python examples/watch_your_loop.py

The lines that record are marked; the rest is a loop as it stands in every tutorial.
"""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import imprint

EPOCHS = 10


def main() -> None:
    """Train a small network on scikit-learn's digits with every tenth training label moved on by one."""
    inputs, target = load_digits(return_X_y=True)
    wrong = slice(None, None, 10)
    target[wrong] = (target[wrong] + 1) % 10
    corpus = imprint.open((inputs, target), split={"train": 0.8, "test": 0.2})
    rows = corpus.rows("train")

    x, y = torch.tensor(inputs[rows] / 16, dtype=torch.float32), torch.tensor(target[rows])
    loader = DataLoader(TensorDataset(torch.from_numpy(rows), x, y), batch_size=64, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    with imprint.watch("runs/digits", corpus, model) as recorder:  # records
        for _ in range(EPOCHS):
            for row, batch, label in loader:
                outputs = model(batch)
                recorder.batch(row, outputs)  # records
                optimizer.zero_grad()
                cross_entropy(outputs, label).backward()
                optimizer.step()
            recorder.epoch()  # records

    lowest = imprint.score(recorder.run, ["aum"]).frame().sort("aum").head(len(rows) // 10)
    found = sum(position % 10 == 0 for position in lowest["position"])
    print(f"Of the {len(lowest)} training examples with the lowest AUM, {found} have a label that was moved.")


if __name__ == "__main__":
    main()
