"""What each of several processes does with its share of a batch."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hssn import TreeLoss, TreeTripletSupervision
from sgr.data.class_tree import ClassTree

TREE = ClassTree.parse({"a": ["0", "1"], "b": ["2", "3"], "4": None}, list("01234"))


class Step(nn.Module):
    """A classifier of nodes and a projection, with their losses; without a random choice."""

    def __init__(self):
        super().__init__()
        self.loss = TreeLoss(5, tree=TREE, rmi_weight=0.5)
        self.classifier = nn.Conv2d(4, self.loss.num_outputs, 1)
        self.triplet = TreeTripletSupervision(
            TREE, "res5", channels=4, stride=1, embedding_dim=3, norm="", samples=9
        )
        self.triplet.loss.shuffle = False

    def forward(self, features, labels):
        inputs = [{"sem_seg": each} for each in labels]
        losses = self.loss(self.classifier(features), labels, 1, features)
        return {**losses, **self.triplet(None, {"backbone": {"res5": features}}, inputs)}


def gradients_of_share(rank, state, batches):
    model = Step()
    model.load_state_dict(state)
    parallel = DistributedDataParallel(model)
    sum(parallel(*batches[rank]).values()).backward()
    return {name: each.grad for name, each in model.named_parameters()}
