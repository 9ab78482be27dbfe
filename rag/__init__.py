"""Documents in, cited answers out: loading, chunking, retrieval, prompting, answering."""
