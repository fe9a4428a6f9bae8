/* Text that Debian packages install, read where it lies, and files of the user's. */
#ifndef LPLB_TRAIN_TEXT_H
#define LPLB_TRAIN_TEXT_H

#include "train/corpus.h"

/* Adds a source to the corpus, one document a chapter, entry, fortune or section:
 *   kjv       King James Bible, through the program `bible` (bible-kjv, bible-kjv-text)
 *   austen    six novels (r-cran-janeaustenr)
 *   fortunes  (fortunes)     foldoc  dictionary of computing (dict-foldoc)
 *   perl      Perl's manual (perl-doc)
 *   mixed     all of these, documents of the sources in turn
 *   PATH      a text file, documents separated by form feeds
 * Names may be joined with commas. LPLB_IO says which package to install. */
lplb_status text_add(corpus *c, const char *sources);

#endif
