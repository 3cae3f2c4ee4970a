// Loading the module that holds SentencePiece.
#include "apps/translate/pieces.h"

#include <dlfcn.h>
#include <heed/attention.h>

namespace heed::translate {

const PiecesModule& pieces_module() {
  // The loader looks where the program's RPATH says: beside the program and, installed, in lib/heed.
  static const PiecesModule* const module = [] {
    void* library = dlmopen(LM_ID_BASE, "heed_pieces.so", RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    const void* symbol = library ? dlsym(library, "heed_pieces") : nullptr;
    if (symbol == nullptr) {
      throw Error(std::string("SentencePiece cannot be loaded: ") + dlerror() + "; heed_pieces.so belongs beside heed");
    }
    return static_cast<const PiecesModule*>(symbol);
  }();
  return *module;
}

}  // namespace heed::translate
