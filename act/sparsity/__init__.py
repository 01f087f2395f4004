"""N:M sparsity as plain functions of tensors: masks, SR-STE, one-shot criteria and the model driver."""
