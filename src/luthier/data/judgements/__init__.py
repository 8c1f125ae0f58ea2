"""What people said of outputs, from the file to the batch: rankings stay rankings.

records   one row -> the columns that all kinds share (`records.SCHEMA`; kinds and needs in `data.examples.RECORDS`)
prompts   where the prompt of a row stands
judged    Rows -> Judged: items (one prompt with its distinct completions) and judgements on them, in flat arrays
faults    rows that say nothing, or contradict themselves: found, counted, refused above a threshold
view      Judged -> JudgedView: token ids, and the tensors of a step
loader    steps of `batch_size` judgements, cut into micro-batches at the least counted cost

    judged = judge(rows, unranked="omit")                      # rows of a kind in data.examples.JUDGED
    refuse(judged, most=0.1)
    view = judged_view(rows, judged, tokenizer, speech, store, pad_id, reader="decoder")     # or "encoder", "seq2seq"
    loader = JudgedLoader(view, plan, width=..., forms=("bundles", "rows"))                    # .steps(start), .per_epoch
    batch = view.batch(judgements, form="bundles")             # judgements: numbers 0..len(view)-1
    for completions, batch in view.sweep(...):                 # every completion once, for evaluation and caching

A step's sample ids are numbers of judgements. In a micro-batch each (prompt, completion) that its judgements name is read
once, as one *piece*, however many judgements name it. With P pieces, N judgements and K the most completions of one:

    of the tokens     what `bundles.lay` gives (input_ids, at, targets, piece, pieces_of, ...), and
    ends        (P,) flat index into rows x longest of each piece's last token: where a reward head reads
    completion  (P,) number of the completion in the view: what cached columns are indexed by
    tokens      (P,) learned tokens of the piece
    pooled      (P, width) in place of all token tensors, where the frozen part is cached (`view.features`)
    <name>      (P, ...) of each column in `view.columns`, such as reference log-probabilities
    of the judgements
    index       (N, K) piece of each completion that the judgement is about; 0 in the padding
    ranks       (N, K) as methods/objectives has them: lower is better, equal is a tie, inf is below all, NaN no part; of
                scores and thumbs too, so that  plackett_luce(scores[index], ranks)  serves every form
    values      (N, K) scores (higher is better) and thumbs (1, 0); NaN for rankings and choices, and in the padding
    form        (N,) index into records.FORMS
    rater       (N,) index into judged.raters, -1 unknown
    weight      (N,) 1 where the row says nothing; margin (N,) 0 where it says nothing
    judgement   (N,) number of the judgement in the view; item (N,) of its prompt
    chosen, rejected  (M,) pieces of every strict pair of every judgement, better first; pair_of (M,) the judgement (0..N-1)
                it is from; pair_share (M,) 1 / strict pairs of that judgement

So  s = scores[batch["index"]]  is (N, K) for listwise objectives, and  scores[batch["chosen"]] - scores[batch["rejected"]]
is every pair. Import from the modules; this page imports none of them.
"""
