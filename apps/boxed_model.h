// The models that come with the program: the folders of models/.
#pragma once

#include <string>

namespace heed::app {

// The folder of the model with this name ("en-de", "fashion", ...): share/heed/models/NAME of where the program is
// installed, or models/NAME beside the folder it was built in. Empty if it is in neither.
std::string boxed_model(const std::string& name);

}  // namespace heed::app
