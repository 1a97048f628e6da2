# One step of grf for bench_engine.py: Rscript engine_grf.R fit|predict FOLDER TREES THREADS SEED
# Arrays are files of doubles, columns first; `clock` gets seconds and peak memory (bytes above the start) of the call.
library(grf)
told <- commandArgs(trailingOnly = TRUE)
at <- function(name) file.path(told[2], name)
doubles <- function(name) readBin(at(name), "double", n = file.size(at(name)) / 8)
memory <- function(key) {
  line <- grep(paste0("^", key, ":"), readLines("/proc/self/status"), value = TRUE)
  1024 * as.numeric(gsub("[^0-9]", "", line))
}
timed <- function(call) {
  try(writeLines("5", "/proc/self/clear_refs"), silent = TRUE)
  resident <- memory("VmRSS")
  started <- proc.time()[["elapsed"]]
  value <- call()
  writeBin(c(proc.time()[["elapsed"]] - started, memory("VmHWM") - resident), at("clock"))
  value
}
if (told[1] == "fit") {
  w <- doubles("w")
  y <- doubles("y")
  x <- matrix(doubles("x"), nrow = length(y))
  grow <- if (max(w) > 1) function(...) multi_arm_causal_forest(x, y, factor(w), ...) else function(...) causal_forest(x, y, w, ...)
  forest <- timed(function() {
    grow(num.trees = as.integer(told[3]), num.threads = as.integer(told[4]), seed = as.integer(told[5]))
  })
  saveRDS(list(forest = forest, columns = ncol(x)), at("model"), compress = FALSE)
} else {
  model <- readRDS(at("model"))
  new <- matrix(doubles("new"), ncol = model$columns)
  found <- timed(function() predict(model$forest, new, estimate.variance = TRUE, num.threads = as.integer(told[4])))
  writeBin(as.vector(found$predictions), at("effect"))
  writeBin(as.vector(as.matrix(found$variance.estimates)), at("variance"))
}
