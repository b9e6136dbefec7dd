"""The proof: exported files are run and compared with the unfused model, on a few pictures and on many."""
