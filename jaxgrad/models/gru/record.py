"""What the recurrent model tells the rest: the row that the list of models names."""

from jaxgrad.models import sequences
from jaxgrad.models.gru import by_node, fused, params, sample
from jaxgrad.models.gru.forward import loss
from jaxgrad.models.gru.params import Params
from jaxgrad.models.gru.sizes import Sizes
from jaxgrad.models.model import Benchmark, Model, without_nodes
from jaxgrad.models.sequence_sampling import words_by
from jaxgrad.models.sequences import IGNORED, RECIPE, Batch


def numbers(sizes: Sizes, vocab_size: int, batch_size: int) -> int:
    """How many numbers a step holds at least: three times the parameters, and embeddings, gates and states."""
    d, n = sizes.embedding, sizes.hidden
    of_params = vocab_size * (d + n + 1) + n + 3 * n * (d + n + 2)
    return 3 * of_params + batch_size * sizes.block * (d + 4 * n)


def flops(params: Params, sizes: Sizes, rows: int) -> int:
    """Floating-point operations of one step's products, six for each number of the matrices and place, and of the
    embedding's sum.
    """
    matrices = params.gru.of_x.size + params.gru.of_h.size + params.head.size
    return rows * sizes.block * (6 * matrices + sizes.embedding)


def zero_biases(params: Params) -> Params:
    """A usual initialisation, with zeros for biases and the first state, which hides mistakes."""
    gru = params.gru._replace(bias_x=0 * params.gru.bias_x, bias_h=0 * params.gru.bias_h)
    return params._replace(start=0 * params.start, gru=gru, head_bias=0 * params.head_bias)


MODEL = Model(
    name="gru",
    sizes=Sizes,
    batch=Batch,
    init=params.init,
    examples=lambda words, vocabulary, sizes: sequences.examples(words, vocabulary, sizes.block),
    shapes=lambda sizes: ((sizes.block,), (sizes.block,)),
    loss=loss,
    gradients={"fused": without_nodes(fused.nodes_fused), "by-node": without_nodes(by_node.nodes_by_node)},
    nodes={"by-node": by_node.nodes_by_node, "fused": fused.nodes_fused},
    predict=lambda params, extra, X, sizes: sample.predict(params, X),
    sample=words_by(
        lambda params, key, prompts, count, sizes, temperature, top_k: sample.sample(
            params, key, prompts, count, temperature, top_k
        )
    ),
    numbers=numbers,
    recipe={"steps": 20_000, **RECIPE},
    # The head reads states, and its rows are theirs.
    axes={"head": ("model",)},
    split=lambda sizes: {"hidden layer": sizes.hidden},
    twins={"torch": "gru", "torch.nn": "gru_module"},
    # PyTorch's own kernel cannot be followed inside, and computes the closed forms.
    formulas={"torch.nn": "fused"},
    hand=(by_node.__file__,),
    ignored=IGNORED,
    streams=True,
    telling=params.nowhere_zero,
    hiding=zero_biases,
    tiny=Sizes(embedding=4, hidden=4, block=4, dropout=0.0),
    swept="hidden",
    embedding="tokens",
    logits="logits",
    benchmark=Benchmark(
        sizes={
            "small": (32, Sizes(dropout=0.0)),
            "middle": (32, Sizes(embedding=256, hidden=512, block=64, dropout=0.0)),
        },
        usual=("small",),
        trial=(4, Sizes(embedding=4, hidden=8, block=8, dropout=0.0)),
        flops=flops,
        shown=("embedding", "hidden", "block"),
        peers={"torch": "gru_steps"},
    ),
)
