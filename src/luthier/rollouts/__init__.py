"""Samples of the policy as a source of steps: sample, judge, read under the reference, give credit, hand out in batches.

source    the steps, and what a checkpoint keeps of them
sampler   who samples: this process, or vLLM
scores    what judges say of completions: components, penalties, scale
buffer    one rollout: tokens and columns, and the micro-batches made from them
reading   log-probabilities and values of a rollout under policy and reference
health    figures of a rollout, and alarms
yardstick best-of-n of the model that the stage started from
"""
