// The model that comes with the program: models/en-de, English to German.
#pragma once

#include <string>

namespace heed::translate {

// Its folder: share/heed/models/en-de of where the program is installed, or models/en-de beside the folder it was built
// in. Empty if it is in neither.
std::string boxed_model();

}  // namespace heed::translate
